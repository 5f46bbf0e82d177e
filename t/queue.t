#!/usr/bin/perl

# Admission: who waits is told where and for how long, priorities, bounds in
# requests and in time, deadlines.

use warnings;
use strict;

use FindBin;
use MIME::Base64;
use Test::More;
use Time::HiRes qw/ time /;

use lib "$FindBin::Bin/lib";

use SD;

my $t = SD->new(http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    sd_slots 1;
    sd_queue 8 time=1m;
    sd_timeout 5m;
END
        location = /generate { sd_generate; }
        location = /low { sd_generate; sd_priority low; }
        location = /high { sd_generate; sd_priority high; }
        location = /beat { sd_generate; sd_read_timeout 1s; }
END

$t->start();

my %small = (prompt => 'a red house', width => 64, height => 64, seed => 7,
             steps => 4);
my %long = (prompt => 'a hill', width => 256, height => 256, steps => 1000,
            seed => 7, preview => 'none', latent => 'none');
my $mixed = 'multipart/mixed';


sub waiting {
    my ($n) = @_;

    ok((wait_for { $t->status()->{queue}{waiting} == $n } 30), "$n waiting");
}


# parts up to one of "queued" with this position; its JSON

sub position {
    my ($r, $n) = @_;

    while (my $p = $r->part()) {
        next unless $p->{event} eq 'queued';

        my $data = json_decode($p->{body});
        return $data if $data->{position} == $n;
    }

    return {};
}


# places in the queue

my $first = $t->post('/generate', { %long }, Accept => $mixed);
is($first->part()->{event}, 'start', 'one runs');

my @wait;

for (1 .. 3) {
    push @wait, $t->post('/generate', { %small }, Accept => $mixed);
    waiting($_);
}

my $told = position($wait[2], 3);
is($told->{position}, 3, 'the third one is told so');
cmp_ok($told->{eta}, '>', 0, 'and when it begins');

my $queue = $t->status()->{queue};
is($queue->{limit}, 8, 'status: the limit');
cmp_ok($queue->{seconds}, '>', 0, 'what waits takes time');
cmp_ok($queue->{seconds}, '<', $told->{eta}, 'less than with what runs');

my $start = time();
$wait[0]->close();
waiting(2);
is(position($wait[2], 2)->{position}, 2, 'one leaves: told again');
is(position($wait[1], 1)->{position}, 1, 'the other one, too');

# not more often than it may be: everything else has happened since

$first->close();
my @parts = $wait[2]->parts();
is($parts[-1]{event}, 'final', 'it is made');
cmp_ok(scalar(grep { $_->{event} eq 'queued' } @parts), '<=',
    1 + time() - $start, 'told once a second');
$wait[1]->parts();
waiting(0);
is($t->status()->{queue}{seconds}, 0, 'nothing waits');


# as an event stream

$first = $t->post('/generate', { %long }, Accept => $mixed);
$first->part();

my $sse = $t->post('/generate', { %small }, Accept => 'text/event-stream');
my $e = $sse->event();
is($e->{event}, 'queued', 'an event stream is told');
$told = json_decode($e->{data});
is($told->{position}, 1, 'where');
ok(exists $told->{eta}, 'and for how long');
$sse->close();


# somebody who waits hears something long before others lose patience

my $beat = $t->post('/beat', { %small }, Accept => $mixed);
is(position($beat, 1)->{position}, 1, 'one that waits');
my $p = $beat->part();
is($p->{event}, 'queued', 'hears more');
is(json_decode($p->{body})->{position}, 1, 'that it still does');
$beat->close();
waiting(0);


# priorities: the order in which they will begin, by weights

my @queue;

for (qw/ low low generate generate high high /) {
    push @queue, [ $_, $t->post("/$_", { %small }, Accept => $mixed) ];
    waiting(scalar @queue);
}

for ([ 4, 1 ], [ 0, 2 ], [ 5, 3 ], [ 2, 4 ], [ 3, 5 ], [ 1, 6 ]) {
    my ($i, $n) = @$_;

    is(position($queue[$i][1], $n)->{position}, $n,
        "$queue[$i][0] is number $n");
}

$first->close();
ok($_->[1]->complete(), "$_->[0] is made") for @queue;
waiting(0);


# time

my %huge = (%long, width => 512, height => 512);

$first = $t->post('/generate', { %huge }, Accept => $mixed);
is($first->part()->{event}, 'start', 'a large one');

# one may always wait

my $r = $t->post('/generate', { %huge, n => 4 }, Accept => $mixed);
is(position($r, 1)->{position}, 1, 'larger ones wait');

my $full = $t->post('/generate', { %small });
is($full->status(), 503, 'no more room for want of time');

my $error = json_decode($full->body())->{error};
is($error->{code}, 'queue_full', 'the code');
like($error->{message}, qr/seconds of work/, 'the reason');
cmp_ok($full->header('Retry-After'), '>', 1, 'not at once');

$r->close();
waiting(0);


# deadlines

$r = $t->post('/generate', { %small, timeout => 301 });
is($r->status(), 400, 'more time than the location allows');
is(json_decode($r->body())->{error}{param}, 'timeout', 'is named');

($r, @parts) = $t->late('/generate', \%small);
is($parts[-1]{event}, 'error', 'one that waits ends in time');
is(json_decode($parts[-1]{body})->{error}{code}, 'timeout', 'with its reason');
ok($r->complete(), 'in order');

$r = $t->post('/generate', { %small, timeout => 0.2 });
is($r->status(), 504, 'or is answered 504');

$first->close();
waiting(0);
ok((wait_for { $t->status()->{running} == 0 } 30), 'nothing runs');

($r, @parts) = $t->late('/generate', { %small, steps => 1000,
                                       latent => 'none' }, 1);
is($parts[-1]{event}, 'error', 'one that runs ends');
is($parts[-2]{event}, 'latent', 'and gives its state');
cmp_ok($parts[-2]{step}, '>=', 1, 'after some steps');

# which is where it goes on

$r = $t->post('/generate', { prompt => $small{prompt}, timeout => 200,
                             latents => encode_base64($parts[-2]{body}, '') },
              Accept => $mixed);
is(json_decode($r->part()->{body})->{step}, $parts[-2]{step},
    'where it goes on');
$r->close();

$t->stop();

done_testing();
