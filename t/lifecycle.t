#!/usr/bin/perl

# Start and end: any number of workers, QUIT, TERM, a killed worker, and nginx
# without a master.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 2,
             seed => 7);
my %more = (%small, steps => 60);
my %long = (%small, steps => 1000, width => 256, height => 256);
my $mixed = 'multipart/mixed';

my %conf = (http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
END
        location = /generate { sd_generate; }
END

my $jpeg;


# a stream of which the first preview has come

sub begun {
    my ($t, $body) = @_;

    my $r = $t->post('/generate', $body, Accept => $mixed);

    while (my $p = $r->part()) {
        return $r if $p->{event} eq 'preview';
    }

    die 'no preview: ' . $t->log();
}


for my $workers (1, 2, 'auto') {

    my $t = SD->new(%conf, main => "worker_processes $workers;");
    $t->start();

    # many connections, so that each worker has some

    my @r = map { $t->post('/generate', { %small }) } 1 .. 8;
    my %bodies = map { $_->body() => 1 } @r;

    $jpeg //= (keys %bodies)[0];
    same(join('', keys %bodies), $jpeg, "$workers: the same from each");
    is(picture_size($jpeg), 'jpeg 64x64', "$workers: a picture");


    # QUIT waits for what runs

    @r = map { begun($t, { %more }) } 1 .. 3;
    $t->signal('QUIT');

    for (@r) {
        my @parts = $_->parts();
        is($parts[-1]{event}, 'final', "$workers: QUIT waits");
        ok($_->complete(), "$workers: whole");
    }

    ok(defined $t->ended(10), "$workers: and ends then");


    # TERM does not

    $t->start();
    @r = map { begun($t, { %long }) } 1 .. 2;
    $t->signal('TERM');

    my $time = $t->ended(10);
    cmp_ok($time // 99, '<', 1, sprintf '%s: TERM ends within %.2f s',
           $workers, $time // 99);

    for (@r) {
        my @parts = $_->parts();

        ok(!$_->complete() || $parts[-1]{event} eq 'error',
           "$workers: what was running is cut, or ends with an error");
    }


    # the engine's worker is killed: an error in order, or a cut, but nothing
    # that looks whole; and the next request is served by the one that follows

    $t->start();
    @r = map { begun($t, { %long }) } 1 .. 3;

    my $pid = $t->status()->{pid};
    kill 'KILL', $pid;

    for (@r) {
        my @parts = $_->parts();
        my $last = @parts ? $parts[-1]{event} : 'cut';

        isnt($last, 'final', "$workers: a killed engine makes no pictures");
        ok(!$_->closed() || $last eq 'error', "$workers: which one can see");
    }

    same($t->post('/generate', { %small })->body(), $jpeg,
        "$workers: the next one does");
    isnt($t->status()->{pid}, $pid, "$workers: in another process");

    $t->stop(except => qr/worker process $pid exited on signal 9/);
}


# what a client has when the engine's worker is killed in mid-stream: at that
# worker its connection is cut, at another one the ready-made ending comes

my $t = SD->new(http => $conf{http} . 'sd_slots 32;', servers => <<'END',
    server {
        listen 127.0.0.1:%%PORT1%% reuseport;
        add_header Worker $pid;
        location = /generate { sd_generate; }
    }
END
    main => 'worker_processes 2;');
$t->start();

my $pid = $t->status()->{pid};
my %at;

for (1 .. 50) {
    my $r = $t->request('POST', '/generate', port => $t->port('PORT1'),
        headers => { Accept => $mixed, 'Content-Type' => 'application/json' },
        body => json_encode({ %long }));

    while (my $p = $r->part()) {
        last if $p->{event} eq 'preview';
    }

    $at{$r->header('Worker') == $pid ? 'engine' : 'other'} //= $r;
    last if keys %at == 2;
}

kill 'KILL', $pid;

my @parts = $at{engine}->parts();
ok(!$at{engine}->closed() && !$at{engine}->complete(),
   'at the killed worker: a cut that shows');

@parts = $at{other}->parts();
ok($at{other}->closed() && $at{other}->complete(),
   'at the other: an orderly end');
is($parts[-1]{event}, 'error', 'which is an error');
is(json_decode($parts[-1]{body})->{error}{code}, 'engine_failed', 'by name');

same($t->request('POST', '/generate', port => $t->port('PORT1'),
                 body => json_encode({ %small }))->body(), $jpeg,
    'the next one is served');

$t->stop(except => qr/worker process $pid exited on signal 9/);


# another worker is killed: the engine does not mind

$t = SD->new(%conf, main => 'worker_processes 2;');
$t->start();

$pid = $t->status()->{pid};
my ($other) = grep { $_ != $pid } $t->workers();

kill 'KILL', $other;

ok((wait_for { !grep { $_ == $other } $t->workers() } 10), 'another worker');
ok((wait_for { $t->workers() == 2 } 10), 'is respawned');
same($t->post('/generate', { %small })->body(), $jpeg, 'a picture');
is($t->status()->{pid}, $pid, 'from the same engine');

$t->stop(except => qr/worker process $other exited on signal 9/);


# in the foreground, and without a master

for my $g ('daemon off;', 'daemon off; master_process off;') {
    my $t = SD->new(%conf);
    $t->start(foreground => $g);

    same($t->post('/generate', { %small })->body(), $jpeg, "$g a picture");

    my $r = begun($t, { %long });
    $t->signal('TERM');

    my $time = $t->ended(10);
    cmp_ok($time // 99, '<', 1, sprintf '%s TERM ends within %.2f s', $g,
           $time // 99);

    $t->start(foreground => $g);
    same($t->post('/generate', { %small })->body(), $jpeg, "$g again");
    $t->stop();
}


# while the model loads, requests wait, and readiness says so

$t = SD->new(%conf);
$t->start(ready => 0);

my $r = $t->post('/generate', { %small });
like($t->get('/ping')->status(), qr/^(?:200|503)$/, 'not ready, or ready');
same($r->body(), $jpeg, 'the first request waits for the model');
is($t->get('/ping')->status(), 200, 'ready');

$t->stop();

done_testing();
