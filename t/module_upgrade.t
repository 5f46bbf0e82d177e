#!/usr/bin/perl

# Another version of the module, as `make install` puts it in place: a reload
# keeps the code that is loaded, a binary upgrade takes the new one, and nobody
# notices.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 60,
             seed => 7);

my $module = slurp("$SD::BUILD/ngx_http_sd_module.so");
my ($version) = slurp("$SD::TOP/CHANGES") =~ /ngx_http_sd_module ([\d.]+)/
    or die "no version\n";
my $other = $version =~ s/\d$/9/r;

my $t = SD->new(conf => '');
my $dir = $SD::BUILD = $t->{dir};


# as install(1) and mv do it: a file of another inode

sub install {
    my ($bytes) = @_;

    open my $f, '>:raw', "$dir/new" or die "$!";
    print $f $bytes;
    close $f;

    rename "$dir/new", "$dir/ngx_http_sd_module.so" or die "$!";
}


# a stream, and that it comes to its end

sub begun {
    my $r = $t->post('/generate', { %small }, Accept => 'multipart/mixed');

    while (my $p = $r->part()) {
        return $r if $p->{event} eq 'preview';
    }

    die 'no preview: ' . $t->log();
}

my $jpeg;

sub finished {
    my ($r, $name) = @_;

    my @parts = $r->parts();
    same($parts[-1]{body}, $jpeg, "$name: what ran is finished");
    ok($r->complete(), "$name: whole");
}


install($module);

$t->configure(server => 'location = /generate { sd_generate; }');
$t->start();

is($t->status()->{version}, $version, 'a version');
$jpeg = $t->post('/generate', { %small })->body();


# the next one is there

install($module =~ s/\Q$version\E/$other/gr);

my $r = begun();
my $engine = $t->status()->{pid};

$t->signal('HUP');
ok((wait_for { my $s = eval { $t->status() }; $s && $s->{pid} != $engine }),
   'a reload');
is($t->status()->{version}, $version, 'keeps the code');
finished($r, 'a reload');

$r = begun();
my $old = $t->{pid};

$t->signal('USR2');
ok((wait_for { -e "$dir/nginx.pid.oldbin" && -s "$dir/nginx.pid" }),
   'a binary upgrade');
chomp($t->{pid} = slurp("$dir/nginx.pid"));

kill 'QUIT', $old;
same($t->post('/generate', { %small })->body(), $jpeg, 'a picture meanwhile')
    for 1 .. 4;

finished($r, 'a binary upgrade');
ok((wait_for { !-e "$dir/nginx.pid.oldbin" }), 'the old one is gone');
is($t->status()->{version}, $other, 'takes the new code');

$t->stop();

done_testing();
