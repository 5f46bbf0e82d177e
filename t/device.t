#!/usr/bin/perl

# Devices that are not there: nginx starts, and says what is missing.  On any
# host, with CUDA or without.

use warnings;
use strict;

use File::Copy qw/ copy /;
use File::Temp qw/ tempdir /;
use FindBin;
use POSIX ();
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 2,
             seed => 7);
my $server = 'location = /generate { sd_generate; }';
my $built = $SD::BUILD;


sub with_device {
    my ($device) = @_;

    return SD->new(http => "sd_model %%MODEL%%;\n sd_device $device;",
                   server => $server);
}


# what must be so where no device can be used; why: a pattern

sub no_device {
    my ($name, $t, $device, $why) = @_;

    my ($rc, $out) = $t->check();
    is($rc, 0, "$name: nginx -t") or diag $out;

    $t->start(ready => 0);
    wait_for { $t->get('/ping')->body() =~ /"failed"/ };

    my $r = $t->post('/generate', { %small });
    is($r->status(), 503, "$name: 503");
    like($r->body(), qr/"code":"model_failed"/, "$name: model_failed");
    like($r->body(), $why, "$name: says why");

    my $status = json_decode($t->get('/status')->body());
    my $d = $status->{devices}[0];
    is("$d->{name} $d->{state}", "$device failed", "$name: in the status");
    like($d->{error}{message}, $why, "$name: with the reason");
    is($status->{models}[0]{state}, 'failed', "$name: so is the model");

    like($t->log(), qr/\[error\].* sd: model ".*" failed: .*$why/,
         "$name: in the log");

    unlike(slurp("/proc/$t->{pid}/maps"), qr/sd_cuda|libcud/,
           "$name: the master has nothing of CUDA's");

    is($t->post('/generate', { %small })->status(), 503, "$name: it lives on");
    $t->stop();
}


# a card of which no host has so many

no_device('no such card', with_device('cpu')->configure(
    http => "sd_model %%MODEL%%;\n sd_device cuda:999;", server => $server),
    'cuda:999',
    -e "$built/sd_cuda.so" ? qr/no device "cuda:999"|driver|card/
                           : qr/sd_cuda\.so/);


# the module alone

my $dir = tempdir('sd-test-XXXXXX', TMPDIR => 1, CLEANUP => 1);
chmod 0755, $dir;
copy("$built/ngx_http_sd_module.so", $dir) or die "copy: $!";
$SD::BUILD = $dir;

no_device('no library', with_device('cuda'), 'cuda:0', qr/sd_cuda\.so/);

my $auto = with_device('auto');
$auto->start();

my @lines = $auto->log() =~ /^.*no GPU.*$/mg;
is(scalar @lines, 1, 'auto: one line');
like($lines[0], qr/\[notice\].* no GPU, the cpu computes: .*sd_cuda\.so/,
     'that says why');
is(picture_size($auto->post('/generate', { %small })->body()), 'jpeg 64x64',
   'auto: a picture by the cpu');
$auto->stop();

$SD::BUILD = $built;


# the cpu, once and twice: where there are two processors one is each one's

my ($first) = slurp('/proc/self/status') =~ /^Cpus_allowed_list:\s*(\d+)/m;
my ($last) = slurp('/proc/self/status') =~ /^Cpus_allowed_list:.*?(\d+)$/m;
my @lists = $first == $last ? ("cpu:$first") : ("cpu:$first", "cpu:$last");

my $one = with_device('cpu');
$one->start();
my $picture = $one->post('/generate', { %small })->body();
$one->stop();

my $two = with_device("@lists");
$two->start();

sub devices {
    return [ map { "$_->{name} $_->{state} $_->{threads}" }
             @{json_decode($two->get('/status')->body())->{devices}} ];
}

wait_for { !grep { !/ready/ } @{devices()} };
is_deeply(devices(), [ map { "$_ ready 1" } @lists ],
          'cpu devices, a thread each');

# each thread of a device keeps to its processors

my $engine = json_decode($two->get('/status')->body())->{pid};
my %bound;

for my $task (glob "/proc/$engine/task/*/status") {
    my $s = slurp($task);
    my ($n) = $s =~ /^Name:\s*sd-(?:steps|side)(\d+)$/m or next;
    my ($list) = $s =~ /^Cpus_allowed_list:\s*(.*)$/m;
    push @{$bound{$n}}, "cpu:$list";
}

is_deeply(\%bound, { map { $_ => [ ($lists[$_]) x 2 ] } 0 .. $#lists },
          'on the processors that were listed');

# the same bytes as of one device, several at a time

my @pictures;

for (1 .. 4) {
    pipe(my $r, my $w) or die "pipe: $!";
    my $pid = fork() // die "fork: $!";

    if (!$pid) {
        binmode $w;
        print $w $two->post('/generate', { %small })->body();
        close $w;
        POSIX::_exit(0);
    }

    close $w;
    push @pictures, $r;
}

for (@pictures) {
    binmode $_;
    ok(do { local $/; <$_> } eq $picture, 'the same picture');
}

1 while wait() != -1;

$two->stop();


# sd, found by PATH: its library is beside it, or where the modules are

copy("$built/sd", $dir) && chmod 0755, "$dir/sd" or die "copy: $!";

{
    local $ENV{PATH} = "$dir:$ENV{PATH}";

    like(`cd / && sd bench --device cuda 2>&1`,
         qr{/modules/sd_cuda\.so|card|driver},
         'sd without its library beside it');

    open my $f, '>', "$dir/sd_cuda.so" or die "$!";
    print $f 'no library';
    close $f;

    like(`cd / && sd bench --device cuda 2>&1`, qr{\Q$dir\E/sd_cuda\.so},
         'sd with one');
}


# the library without a driver

SKIP: {
    skip 'no sd_cuda.so here', 3 unless -e "$built/sd_cuda.so";
    skip 'a card is here', 3 if -e '/dev/nvidiactl';

    my $t = with_device('auto');
    $t->start();

    like($t->log(), qr/\[notice\].* no GPU, the cpu computes: .*driver/,
         'auto without a driver');
    is(picture_size($t->post('/generate', { %small })->body()), 'jpeg 64x64',
       'a picture by the cpu');
    $t->stop();
}

done_testing();
