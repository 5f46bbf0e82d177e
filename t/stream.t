#!/usr/bin/perl

# Progress: parts arrive while the picture is made, and closing the connection
# ends it within one step.

use warnings;
use strict;

use FindBin;
use MIME::Base64;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $t = SD->new(http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    sd_slots 1;
    sd_queue 2;
END
        location = /generate { sd_generate; }
        location = /none { sd_generate; sd_preview none; sd_latent none; }
        location = /timeout { sd_generate; sd_timeout 300ms; }
END

$t->start();

my %small = (prompt => 'a red house', width => 64, height => 64, seed => 7);
my %long = (prompt => 'a hill', width => 128, height => 128, steps => 1000,
            seed => 7);
my $mixed = 'multipart/mixed';


# parts

my $r = $t->post('/generate', { %small, steps => 6 }, Accept => $mixed);
is($r->status(), 200, 'a progressive request');

my @parts = $r->parts();

ok($r->closed(), 'the closing boundary');
ok($r->complete(), 'a whole response');

my @order = map { $_->{event} } @parts;
my @events = grep { $_ ne 'queued' && $_ ne 'heartbeat' } @order;

is($events[0], 'start', 'the start comes first');
is($events[-1], 'final', 'the final picture last');

my ($start) = grep { $_->{event} eq 'start' } @parts;
my $info = json_decode($start->{body});

is($info->{seed}, 7, 'start: the seed');
is($info->{steps}, 6, 'start: the steps');
ok(length $info->{model}, 'start: the model');

my @previews = grep { $_->{event} eq 'preview' } @parts;
my @latents = grep { $_->{event} eq 'latent' } @parts;

cmp_ok(scalar @previews, '>=', 1, 'previews');

for (@previews) {
    is(picture_size($_->{body}), 'jpeg 64x64',
        "preview $_->{step} has the picture's size");
    is($_->{steps}, 6, "preview $_->{step} knows the steps");
}

my @steps = map { $_->{step} } @previews;
is("@steps", join(' ', sort { $a <=> $b } @steps), 'in order');

cmp_ok(scalar @latents, '>=', scalar @previews, 'a latent with each');

for (@latents) {
    my $n = unpack 'Q<', $_->{body};
    my $h = json_decode(substr $_->{body}, 8, $n);

    is_deeply($h->{latents}{shape}, [ 1, 4, 8, 8 ],
        "latent $_->{step} is safetensors");
    is($h->{__metadata__}{step}, $_->{step}, "latent $_->{step} knows its step");
}

my ($final) = grep { $_->{event} eq 'final' } @parts;
is(picture_size($final->{body}), 'jpeg 64x64', 'the final picture');
same($final->{body}, $t->post('/generate', { %small, steps => 6 })->body(),
    'is the one that comes alone');

@parts = $t->post('/none', { %small, steps => 4 }, Accept => $mixed)->parts();
is(scalar(grep { $_->{event} =~ /^(?:preview|latent)$/ } @parts), 0,
    'no previews, no latents where they are off');

@parts = $t->post('/none', { %small, steps => 4, preview => 'vae',
                             preview_every => 2, latent => 'last' },
                  Accept => $mixed)->parts();
is(join(' ', map { $_->{step} } grep { $_->{event} eq 'preview' } @parts), '2',
    'decoded previews, every second step');
is(scalar(grep { $_->{event} eq 'latent' } @parts), 1, 'one latent, the last');


# an event stream

$r = $t->post('/generate', { %small, steps => 4 },
              Accept => 'text/event-stream');

my @sse;
while (my $e = $r->event()) {
    push @sse, $e;
}

my @partial = grep { $_->{event} eq 'image_generation.partial_image' } @sse;
my @done = grep { $_->{event} eq 'image_generation.completed' } @sse;

cmp_ok(scalar @partial, '>=', 1, 'partial images');
is(scalar @done, 1, 'one that is completed');
is(picture_size(decode_base64(json_decode($done[0]{data})->{b64_json})),
    'jpeg 64x64', 'a picture');
is(json_decode($partial[0]{data})->{steps}, 4, 'with the steps');
ok($r->complete(), 'whole');

$r = $t->post('/generate', { %small, steps => 4 },
              'Accept' => 'text/event-stream', 'Last-Event-ID' => '3');
is($r->status(), 204, 'a reconnect does not run the job again');


# arrival: the first preview is here while the picture is far from done

$r = $t->post('/generate', { %long }, Accept => $mixed);

my $p;
while ($p = $r->part()) {
    last if $p->{event} eq 'preview';
}

cmp_ok($p->{step}, '<', 500, 'a preview before the end');
is($t->status()->{running}, 1, 'the picture is still being made');


# closing cancels, within one step

my $cancelled = $t->status()->{requests}{cancelled};
$r->close();

ok((wait_for { $t->status()->{running} == 0 } 10), 'closing ends it');
is($t->status()->{requests}{cancelled}, $cancelled + 1, 'as cancelled');

my $steps = $t->status()->{steps};
$t->post('/generate', { %small, steps => 1 })->body();
is($t->status()->{steps}, $steps + 1, 'and no step is made after that');

like(join("\n", $t->access()), qr/ cancelled \d+\/1000 /, 'the log knows');


# closing while it waits

$r = $t->post('/generate', { %long }, Accept => $mixed);
$r->part();
ok((wait_for { $t->status()->{running} == 1 } 10), 'one is running');

my $w = $t->post('/generate', { %long });
ok((wait_for { $t->status()->{queue}{waiting} == 1 } 10), 'one is waiting');

my $w2 = $t->post('/generate', { %long }, Accept => $mixed);
ok((wait_for { $t->status()->{queue}{waiting} == 2 } 10), 'two are waiting');

my $full = $t->post('/generate', { %small });
is($full->status(), 503, 'the queue is full');
like($full->header('Retry-After'), qr/^\d+$/, 'when to try again');
is(json_decode($full->body())->{error}{code}, 'queue_full', 'the code');

$w2->close();
ok((wait_for { $t->status()->{queue}{waiting} == 1 } 10),
    'closing leaves the queue');

$w->close();
$r->close();
ok((wait_for { $t->status()->{connections} == 0 } 10), 'nothing is left');


# a picture that takes too long

$r = $t->post('/timeout', { %long });
is($r->status(), 504, 'a timeout before the first byte');

($r, @parts) = $t->late('/generate', { %long, width => 256, height => 256 });
is($parts[-1]{event}, 'error', 'a timeout within the stream');
ok($r->complete(), 'which ends in order');


# many at once

my @r = map { $t->post('/generate', { %small, steps => 4, seed => $_ },
                       Accept => $mixed) } 1 .. 3;
is(scalar(grep { my @p = $_->parts(); $_->closed()
                 && $p[-1]{event} eq 'final' } @r), 3, 'three at once');

$t->stop();

done_testing();
