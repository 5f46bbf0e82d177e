#!/usr/bin/perl

# What operators look at: sd_metrics, sd_status, sd_ready and sd_live, by any
# worker, over reloads, crashes, and without an engine.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my %conf = (main => 'worker_processes 2;', http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    sd_slots 1;
    sd_queue 0;
END
        location = /generate { sd_generate; add_header X-Worker $pid; }
        location = /timeout { sd_generate; sd_timeout 300ms; }
        location = /impatient { sd_generate; sd_read_timeout 1s; }
        location = /metrics { sd_metrics; }
        location = /livez { sd_live; }
        location = /readyz { sd_ready; }
END

my $t = SD->new(%conf);
$t->start();

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 4,
             seed => 7);
my %long = (%small, steps => 1000, width => 256, height => 256);
my $type = 'text/plain; version=0.0.4; charset=utf-8';


sub metrics {
    my $text = $t->get('/metrics')->body();

    return map { /^(sd_\S+?) (\S+)$/ ? ($1 => $2) : () } split /\n/, $text;
}


sub requests {
    my ($code, $result) = @_;
    my %m = metrics();

    return $m{qq(sd_requests_total{code="$code",result="$result"})} // 0;
}


sub becomes {
    my ($name, $value, $text) = @_;
    my %m;

    wait_for { %m = metrics(); ($m{$name} // '') eq $value } 30;
    is($m{$name}, $value, $text);
}


# one that comes a moment too soon would find the slot taken

sub generate {
    my ($uri, $body, @headers) = @_;
    my %m;

    wait_for { %m = metrics(); $m{sd_running_pictures} == 0 };
    return $t->post($uri, $body, @headers);
}


# the answers

my $r = $t->get('/metrics');
is($r->status(), 200, 'metrics');
is($r->header('Content-Type'), $type, 'their type');
like($r->header('Cache-Control'), qr/no-store/, 'that nobody keeps');
is(length $r->body(), $r->header('Content-Length'), 'of the length it says');

$r = $t->request('HEAD', '/metrics');
is($r->status(), 200, 'HEAD');
is($r->header('Content-Type'), $type, 'its type');
is($r->body(), '', 'without a body');

$r = $t->post('/metrics', {});
is($r->status(), 405, 'POST');
is($r->header('Allow'), 'GET, HEAD', 'what is allowed');

$r = $t->get('/livez');
is($r->status(), 200, 'live');
is($r->body(), qq({"status":"live"}\n), 'and says so');

$r = $t->get('/readyz');
is($r->status(), 200, 'ready');
is($r->body(), qq({"status":"ready"}\n), 'and says so');


# what is counted

generate('/generate', { %small })->body();
generate('/generate', { %small }, Accept => 'multipart/mixed')->body();
generate('/generate', { %small, width => 65 })->body();
generate('/timeout', { %long })->body();

my $whole = json_decode(generate('/generate',
    { %small, preview_every => 2, latent => 'all' },
    Accept => 'application/json')->body());
my $latents = $whole->{previews}[0]{latents};
generate('/generate', { %small, latents => $latents })->body();
is(generate('/generate', { %small, steps => 9, latents => $latents })
       ->status(), 409, 'a state of something else');

$r = generate('/generate', { %long }, Accept => 'multipart/mixed');

while (my $p = $r->part()) {
    last if $p->{event} eq 'preview';
}

is($t->post('/generate', { %small })->status(), 503, 'no room');
my %now = metrics();
is($now{sd_running_pictures}, 1, 'a picture runs');
is($now{sd_connections}, 1, 'for one request');
is($now{'sd_device_running{device="cpu"}'}, 1, 'on the cpu');
cmp_ok($now{'sd_memory_bytes{kind="pictures"}'}, '>', 0, 'and takes memory');
$r->close();

becomes('sd_running_pictures', 0, 'until its client goes away');

is(requests(200, 'ok'), 4, 'requests that were ok');
is(requests(400, 'rejected'), 1, 'one was wrong');
is(requests(409, 'rejected'), 1, 'one had the wrong state');
is(requests(503, 'rejected'), 1, 'one was too many');
is(requests(504, 'timeout'), 1, 'one took too long');
is(requests(200, 'cancelled'), 1, 'one was cancelled');
is(requests(500, 'error'), 0, 'none failed');

%now = metrics();

is($now{sd_pictures_total}, 4, 'pictures');
is($now{'sd_prompt_cache_total{result="miss"}'}, 1, 'all of one prompt');
cmp_ok($now{'sd_prompt_cache_total{result="hit"}'}, '>=', 9,
    'which was encoded once, the empty one before them');
is($now{'sd_resumes_total{result="exact"}'}, 1, 'resumes');
is($now{'sd_resumes_total{result="refused"}'}, 1, 'those refused');
is($now{sd_queue_seconds_count}, 6, 'waits of those that had a slot');
is($now{sd_request_seconds_count}, 4, 'times of those that were ok');
is($now{sd_first_preview_seconds_count}, 5, 'first pictures of all seen');
is($now{sd_step_seconds_count}, $now{sd_step_pictures_sum},
   'a step is one picture\'s here');
is($now{sd_step_seconds_count}, $now{sd_steps_total}, 'and counted');
is($now{sd_steps_total} - $now{sd_steps_wasted_total}, 14,
   'steps that were not wasted');
cmp_ok($now{sd_steps_wasted_total}, '>', 0, 'and those that were');
is($now{'sd_memory_bytes{kind="pictures"}'}, 0, 'no picture is left');
cmp_ok($now{'sd_memory_bytes{kind="weights"}'}, '>', 10e6, 'weights');
cmp_ok($now{'sd_memory_bytes{kind="arenas"}'}, '>', 1e6, 'arenas');
is("$now{sd_up} $now{sd_ready} $now{sd_queue_limit}", '1 1 0', 'gauges');

my $status = $t->status();
is($status->{requests}{ok}, 4, 'the status counts the same');
is($status->{steps}, $now{sd_steps_total}, 'steps, too');
is($status->{engines}[0]{pid}, $status->{pid}, 'and knows its engine');


# as Prometheus wants them, and as README says

my $text = $t->get('/metrics')->body();
my $file = "$t->{dir}/metrics";

open my $f, '>', $file or die "$!";
print $f $text;
close $f;

my $output = `promtool check metrics < $file 2>&1`;
is($?, 0, 'promtool finds nothing wrong') or diag $output;
is($output, '', 'and nothing to say');

my (%label, @rows, $name, $help);

while ($text =~ /^(sd_\w+?)(?:_bucket)?\{(.*?)\} /mg) {
    my ($n, $labels) = ($1, $2);
    my @l = grep { $_ ne 'le' } $labels =~ /(\w+)="/g;
    $label{$n} = @l ? '{' . join(', ', @l) . '}' : '';
}

for (split /\n/, $text) {
    ($name, $help) = ($1, $2) if /^# HELP (\S+) (.*)/;
    push @rows, "| `$name" . ($label{$name} // '') . "` | $1 | $help |"
        if /^# TYPE \S+ (\S+)/;
}

my ($table) = slurp("$SD::TOP/README.md") =~ /^<!-- metrics:.*?\n(.*?)^<!-- /ms;

is($table, join('', map { "$_\n" } '| metric | type | |', '|---|---|---|',
                                    @rows), 'the table in README');


# a reload

my %before;
my @old = $t->workers();
my $pid = $t->status()->{pid};

$r = generate('/generate', { %long, steps => $SD::SANITIZED ? 20 : 60 },
              Accept => 'multipart/mixed');
ok($r->part(), 'a picture runs');

%before = metrics();
$t->signal('HUP');

wait_for {
    my $s = eval { $t->status() };
    $s && $s->{pid} != $pid && ($s->{models}[0]{state} // '') eq 'ready';
} 60;

$status = $t->status();
isnt($status->{pid}, $pid, 'a new engine');
%now = metrics();
is($now{sd_engine_starts_total}, 2, 'engines have started');
cmp_ok($now{sd_steps_total}, '>=', $before{sd_steps_total}, 'counters stay');
is(requests(200, 'ok'), 4, 'all of them');

SKIP: {
    my ($o) = grep { $_->{pid} == $pid } @{$status->{engines}};
    skip 'the old one is done already', 2 unless $o;
    is($o->{status}, 'leaving', 'the old one works yet');
    is($o->{running}, 1, 'at a picture');
}

$r->body();

ok((wait_for {
        my %w = map { ($_ => 1) } $t->workers();
        !grep { $w{$_} } @old;
    } 60), 'the old workers go');

becomes('sd_engines', 1, 'and one engine is left');
is(requests(200, 'ok'), 5, 'both counted');


# a crash in the middle of a stream; the master must not notice at once

$pid = $t->status()->{pid};
%before = metrics();

# by way of the other worker

my $stream;

for (1 .. 100) {
    $stream = generate('/generate', { %long }, Accept => 'multipart/mixed');
    last if $stream->header('X-Worker') != $pid;
    $stream->close();
}

ok($stream->part(), 'a picture runs');

kill 'STOP', $t->{pid};
kill 'KILL', $pid;

# the other worker answers, whoever was to

becomes('sd_up', 0, 'no engine');
is($t->get('/livez')->status(), 200, 'nginx lives');
$r = $t->get('/readyz');
is($r->status(), 503, 'but is not ready');
is($r->body(), qq({"status":"down"}\n), 'as it says');
is($r->header('Retry-After'), 1, 'Retry-After');
is($t->status()->{status}, 'down', 'in the status, too');
is(scalar @{$t->status()->{engines}}, 0, 'without engines');

my @parts = $stream->parts();
is($parts[-1]{event}, 'error', 'the stream ends with an error');
is(requests(200, 'error'), 1, 'and is counted');

my $timeouts = requests(504, 'timeout');
is($t->post('/impatient', { %small })->status(), 504,
   'a request that no engine hears of');
is(requests(504, 'timeout'), $timeouts + 1, 'is counted, too');

kill 'CONT', $t->{pid};

becomes('sd_ready', 1, 'the next one is ready');
%now = metrics();
is($now{sd_engine_starts_total}, 3, 'it has started');
cmp_ok($now{sd_steps_total}, '>=', $before{sd_steps_total}, 'counters stay');
is($t->get('/readyz')->status(), 200, 'nginx is ready again');
is(generate('/generate', { %small })->status(), 200, 'and works');


# another zone begins anew

$t->configure(%conf, http => "$conf{http}    sd_zone other;\n");
$t->signal('HUP');
becomes('sd_engine_starts_total', 1, 'another zone counts from nothing');
becomes('sd_ready', 1, 'and its engine works');

$t->stop(except => qr/exited on signal 9/);

done_testing();
