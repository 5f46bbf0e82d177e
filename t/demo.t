#!/usr/bin/perl

# The demo, as "make demo" runs it: its nginx starts by the configuration that
# is in conf/, paints a picture, has the page, and stops.

use warnings;
use strict;

use File::Temp qw/ tempdir /;
use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;
use SD::Stream;

chdir $SD::TOP or die "$SD::TOP: $!";

# a build directory of its own, so that a demo that runs is left alone

my $dir = tempdir('sd-test-XXXXXX', TMPDIR => 1, CLEANUP => 1);
my $module = 'ngx_http_sd_module.so';
my $port = SD::free_port();

# shells crash with tsan in front of them
my %env = SD::sanitized($dir);
my $nginx = join ' ', %env ? 'env' : (), (map { "$_=$env{$_}" } sort keys %env),
                      '/usr/sbin/nginx';

chmod 0755, $dir;
symlink "$SD::BUILD/$module", "$dir/$module" or die "symlink: $!";


sub demo {
    my ($what, @args) = @_;

    my $out = `@args 2>&1`;
    is($?, 0, $what) or diag($out);

    return $out;
}


demo('the port is free', "conf/demo prepare $dir $port");

like(demo('nginx starts', "conf/demo start $dir $port '$nginx'"),
     qr/nginx is running/, 'and that is said');

my $out = demo('the demo', "$^X -It/lib t/demo.pl http://127.0.0.1:$port "
                           . "$dir/demo");

like($out, qr{ preview .* 1/20 .* final .* 20/20 }xs, 'a picture forms');
is(picture_size(slurp("$dir/demo/final.jpg")), 'jpeg 256x256', 'and is kept');

for my $uri ('/', '/sd.js', '/status', '/ping') {
    my $s = SD::Stream->new(port => $port, method => 'GET', uri => $uri);
    is($s->status(), 200, $uri);
}

demo('another start ends the one that runs', "conf/demo prepare $dir $port");

like(demo('the end', "conf/demo stop $dir"), qr/not running/,
     'and it is known that it has ended');

unlike(slurp("$dir/error.log"), qr/\[(?:warn|error|crit|alert|emerg)\]/,
       'nothing in the log');
is(join('', map { slurp($_) } glob "$dir/sanitizer.*"), '',
   'no report of a sanitizer');

done_testing();
