#!/usr/bin/perl

# Reloads one after the other under load, and what two generations cost: no
# request fails, nothing leaks, weights are shared.  SD_RELOADS: how many, 20.

use warnings;
use strict;

use FindBin;
use IO::Handle;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $reloads = $ENV{SD_RELOADS} // ($SD::SANITIZED eq '' ? 20 : 5);

# it keeps what was freed for a while: 256 MB of it, if it were not told

$ENV{ASAN_OPTIONS} = join ':', 'quarantine_size_mb=1',
                               $ENV{ASAN_OPTIONS} // ();

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 6,
             seed => 7);
my %long = (%small, steps => 1000);
my $mixed = 'multipart/mixed';

my $server = <<'END';
        location = /generate { sd_generate; }
END

my $http = <<'END';
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    sd_cache_path %%DIR%%/cache;
    sd_threads 2;
END


# a stream of which the first preview has come

sub begun {
    my ($t, $body) = @_;

    my $r = $t->post('/generate', $body, Accept => $mixed);

    while (my $p = $r->part()) {
        return $r if $p->{event} eq 'preview';
    }

    die 'no preview: ' . $t->log();
}


# a reload, until the new engine is ready; the old workers

sub reload {
    my ($t) = @_;

    my @old = $t->workers();
    my %old = map { $_ => 1 } @old;

    $t->signal('HUP');

    wait_for { my $s = $t->status(); $s->{pid} && !$old{$s->{pid}} } 60
        or die 'no new engine: ' . $t->log();
    wait_for { $t->get('/ping')->status() == 200 } 60
        or die 'the new engine is not ready: ' . $t->log();

    return @old;
}


sub gone {
    my ($t, @old) = @_;

    return wait_for {
        my %now = map { $_ => 1 } $t->workers();
        !grep { $now{$_} } @old;
    } 60;
}


# of processes: memory, where what is shared counts once; kB

sub memory {
    my $sum = 0;

    for (@_) {
        $sum += $1 if slurp("/proc/$_/smaps_rollup") =~ /^Pss:\s+(\d+)/m;
    }

    return $sum;
}


# of a process: descriptors, threads, memory of its own in kB

sub has {
    my ($pid) = @_;

    my @fds = glob "/proc/$pid/fd/*";
    my $status = slurp("/proc/$pid/status");

    return { fds => scalar @fds, threads => $status =~ /^Threads:\s+(\d+)/m,
             memory => $status =~ /^RssAnon:\s+(\d+)/m };
}


# two generations

my $t = SD->new(main => 'worker_processes 2;', http => $http,
                server => $server);
$t->start();

my $jpeg = $t->post('/generate', { %small })->body();
is(picture_size($jpeg), 'jpeg 64x64', 'a picture');

my $size = { width => 256, height => 256, prompt => 'a house', steps => 2 };
$t->post('/generate', $size)->body();

my $one = memory($t->{pid}, $t->workers());
my $r = begun($t, { %long, %$size, steps => 1000 });
my @old = reload($t);

$t->post('/generate', $size)->body();

my $two = memory($t->{pid}, $t->workers());

SKIP: {
    skip 'tsan has some for each mapping', 1 if $SD::SANITIZED eq 'thread';

    cmp_ok($two, '<', 1.3 * $one, sprintf
        'two generations have %.2f times the memory of one, %.0f MB',
        $two / $one, $one / 1e3);
}

like($t->log(), qr/packed into a file.*found in a file/s,
    'as they share their weights');

$r->close();
ok(gone($t, @old), 'the old one is gone');


# one after the other: clients that never stop

pipe my $from, my $to or die "pipe: $!";
$to->autoflush(1);

my @clients;

for my $n (1 .. 4) {
    my $pid = fork() // die "fork: $!";

    if ($pid == 0) {
        my ($good, $bad) = (0, '');

        close $from;

        while (!-e "$t->{dir}/stop") {
            my $r = eval { $t->post('/generate', { %small }) };
            my $got = eval { $r->status() . ' ' . $r->body() } // "died: $@";

            if ($got eq "200 $jpeg") {
                $good++;

            } else {
                $bad .= substr($got, 0, 100) . ' ';
            }
        }

        print $to json_encode({ good => $good, bad => $bad }), "\n";
        POSIX::_exit(0);
    }

    push @clients, $pid;
}

close $to;

my @masters;
my @engines;

for my $n (1 .. $reloads) {
    my @before = reload($t);

    # as many generations at a time as there may be, not as many as reloads

    gone($t, @before) or last;

    push @masters, has($t->{pid});
    push @engines, has($t->status()->{pid});
}

open my $stop, '>', "$t->{dir}/stop" or die "$!";

my ($good, $bad) = (0, '');

while (my $line = <$from>) {
    my $c = json_decode($line);
    $good += $c->{good};
    $bad .= $c->{bad};
}

waitpid $_, 0 for @clients;

is(scalar @engines, $reloads, "$reloads reloads, each with an engine");
is($bad, '', 'no request failed');
cmp_ok($good, '>=', $reloads, "$good did not");

# of the first and the last, where a few are in the middle of something

for ([ 'the master', \@masters, 1024 ], [ 'the engine', \@engines, 16384 ]) {
    my ($name, $list, $slack) = @$_;
    my ($first, $last) = ($list->[1], $list->[-1]);

    cmp_ok($last->{threads}, '==', $first->{threads},
           "$name: as many threads, $last->{threads}");
    cmp_ok($last->{memory}, '<', $first->{memory} + $slack, sprintf
        '%s: as much memory, %d kB, and %d at first', $name, $last->{memory},
        $first->{memory});
}

# it may have the channel yet of a worker that is gone already

my ($fds) = sort { $a <=> $b } map { $_->{fds} } @masters;

ok((wait_for { has($t->{pid})->{fds} <= $fds } 30),
    "the master: as many descriptors, $fds");

wait_for { $t->status()->{connections} == 0 } 30;
my $idle = has($t->status()->{pid});
@old = reload($t);
gone($t, @old);

cmp_ok($idle->{fds}, '<=', has($t->status()->{pid})->{fds} + 1,
    "the engine: as many descriptors as a new one, $idle->{fds}");

is(scalar(() = glob("$t->{dir}/cache/*")), 1, 'one file of weights');
$t->stop();


# sd_reload wait: one generation at a time; sd_loading: what requests come to

$t = SD->new(http => $http . "sd_reload wait;\n sd_loading fail;",
             server => $server);
$t->start();

$r = begun($t, { %long });
@old = $t->workers();
$t->signal('HUP');

my $refused;

ok((wait_for {
        $refused = $t->post('/generate', { %small });
        $refused->status() == 503;
    } 60), 'sd_loading fail: 503 while the model is not there');
like($refused->body(), qr/"code":"warming_up"/, 'by name');
like($refused->header('Retry-After'), qr/^\d+$/, 'with Retry-After');

# one that accepts yet would say that it is ready

ok((wait_for {
        my $log = $t->log();
        !grep { $log !~ / $_#$_: gracefully shutting down/ } @old;
    } 60), 'old workers accept no more');
ok((wait_for { $t->get('/ping')->status() == 503 } 10), 'not ready');
like($t->log(), qr/sd: waiting for the engine of process $old[0] to end/,
    'sd_reload wait: it waits for the old one');
unlike($t->log(), qr/is ready.*is ready/s, 'and loads nothing');

$r->close();

ok((wait_for { $t->get('/ping')->status() == 200 } 60),
    'once that has ended, it is ready');
same($t->post('/generate', { %small })->body(), $jpeg, 'a picture');

# requests that wait, and an old engine that is killed

$t->configure(http => $http . "sd_reload wait;\n sd_loading wait;",
              server => $server);
my ($engine) = @old = reload($t);
gone($t, @old);

$r = begun($t, { %long });
($engine) = $t->workers();
$t->signal('HUP');

# until then the old worker accepts, too

wait_for {
    my $log = $t->log();
    $log =~ /engine of process $engine to end/
        && $log =~ / $engine#$engine: gracefully shutting down/;
} 60 or fail('the old one is going');

my @waiting = map { $t->post('/generate', { %small }) } 1 .. 3;

kill 'KILL', $engine;
same($_->body(), $jpeg, 'who waits has a picture once the old one is killed')
    for @waiting;

# the worker that follows a killed one has nobody to wait for

$engine = $t->status()->{pid};
kill 'KILL', $engine;
same($t->post('/generate', { %small })->body(), $jpeg,
    'nor does a respawned engine wait');


# another binary: its engine waits, too, and what runs is finished

my $middle = begun($t, { %small, steps => 100 });
my $master = $t->{pid};
@old = $t->workers();
$t->signal('USR2');

ok((wait_for { -e "$t->{dir}/nginx.pid.oldbin" && -s "$t->{dir}/nginx.pid" }
    30), 'another binary');
chomp($t->{pid} = slurp("$t->{dir}/nginx.pid"));

kill 'WINCH', $master;

is(($middle->parts())[-1]{event}, 'final', 'what the old one ran is finished');
ok(gone($t, @old), 'its workers are gone, while it is not');
ok((wait_for { $t->get('/ping')->status() == 200 } 60),
    'which is enough for the new one to be ready');
same($t->post('/generate', { %small })->body(), $jpeg, 'a picture');

kill 'QUIT', $master;
ok((wait_for { !-e "$t->{dir}/nginx.pid.oldbin" } 30), 'the old one is gone');
same($t->post('/generate', { %small })->body(), $jpeg, 'a picture');

$t->stop(except => qr/worker process \d+ exited on signal 9/);

done_testing();
