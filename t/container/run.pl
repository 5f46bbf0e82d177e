#!/usr/bin/perl

# docker/Dockerfile.cpu without Docker: each of its instructions is carried out
# in a Debian that debootstrap makes, and what comes out is run as process 1 of
# a namespace, with the workers as another user than root.  Takes minutes and
# the network, so it is `make container-test` and not in `make test`; what
# Debian itself is made of stays in build/container for the next time.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/../lib";

use SD;
use SD::Container;

plan(skip_all => 'needs root') unless $> == 0;

my $work = "$SD::BUILD/container";
my $c = SD::Container->new('docker/Dockerfile.cpu');

$c->build($work);
pass('built');

my $root = $c->{root};
my ($size) = `du -sm $root` =~ /^(\d+)/;

# of which debootstrap's Debian has 200, and that in an image 75

cmp_ok($size, '<', 320, "a small image: $size MB");
ok(!-e "$root/usr/bin/$_", "without $_") for qw/ gcc make git python3 /;
ok(!-e "$root/src", 'without sources');


# run

my $t = SD->new(conf => '');
my %env = (PORT => $t->port('PORT'), OPS_PORT => $t->port('PORT1'),
           SD_MAX_STEPS => 1000);
my %small = (prompt => 'a red house', width => 64, height => 64, steps => 2,
             seed => 7);

isnt($c->healthy(%env), 0, 'not healthy before it runs');

my $pid = $c->run(\%env);
ok((wait_for { $c->healthy(%env) == 0 }), 'healthy')
    or diag slurp($c->{output});

is($t->get('/ping')->status(), 200, '/ping');

my $whole = $t->post('/generate', { %small, steps => 60 })->body();
is(picture_size($whole), 'jpeg 64x64', 'a picture of the embedded model');

my $page = $t->request('POST', '/invocations', body => json_encode({
    prompt => 'a red house', parameters => { num_inference_steps => 2,
    width => 64, height => 64, num_interim_images => 2,
    starting_step => 0 } }));
is(json_decode($page->body())->{step}, 2, '/invocations');


# who runs what

my @user = map { scalar getpwuid((stat "/proc/$_")[4]) }
           map { split ' ', slurp("/proc/$_/task/$_/children") }
           split ' ', slurp("/proc/$pid/task/$pid/children");

is_deeply(\@user, [ ('www-data') x 2 ], 'the workers are not root');
like(slurp("/proc/$pid/status"), qr/^NSpid:\s+$pid\s+1$/m, 'serve is process 1');


# TERM

my $r = $t->post('/generate', { %small, steps => 60 },
                 Accept => 'multipart/mixed');

while (my $p = $r->part()) {
    last if $p->{event} eq 'preview';
}

kill 'TERM', $pid;

my @parts = $r->parts();
same($parts[-1]{body}, $whole, 'TERM: what runs is finished');

is($c->ended(), 0, 'TERM: it ends with 0');

my $output = slurp($c->{output});
like($output, qr{^\{.*"uri":"/generate","status":200,}m, 'requests on stdout');
like($output, qr/\[notice\].* is ready/, 'the log on stderr');
unlike($output, qr/\[(?:alert|emerg|crit)\]/, 'no alerts');


# as any other user, with nothing else to be written than /tmp

system("rm -rf $root/tmp/sd");

$pid = $c->run(\%env, 1234);
ok((wait_for { $c->healthy(%env) == 0 }), 'as another user')
    or diag slurp($c->{output});

same($t->post('/generate', { %small, steps => 60 })->body(), $whole,
     'the same picture');
is((stat "/proc/$pid")[4], 1234, 'not root');

my @written = grep { !m{^\Q$root\E/(?:tmp|proc|dev)/} } split /\n/,
              `find $root -xdev -type f -user 1234`;
is("@written", '', 'nothing is written elsewhere');

kill 'QUIT', $pid;
is($c->ended(), 0, 'QUIT: it ends with 0');

done_testing();
