#!/usr/bin/perl

# What a demo does, under valgrind: one process, a small model of random
# weights, every format, previews of all kinds, a state and what goes on from
# it, a client that leaves, a deadline, and everything that is refused.  No
# error, and no leak of ours.

use warnings;
use strict;

use FindBin;
use MIME::Base64;
use Test::More;

use lib "$FindBin::Bin/../lib";

use SD;

$SD::NGINX = "$FindBin::Bin/nginx.sh";
$SD::Stream::TIMEOUT = 600;

my $t = SD->new(http => <<'END', server => <<'END');
    sd_model %%TOP%%/t/golden/models/sd15;
    sd_threads 2;
    sd_slots 1;
    sd_queue 1;
    sd_max_steps 1000;
    sd_read_timeout 300s;
    client_body_buffer_size 1k;
    client_max_body_size 1m;
END
        location = /generate { sd_generate; sd_get on; sd_cors *; }
        location = /timeout { sd_generate; sd_timeout 2s; }
        location = /invocations { sd_generate sagemaker; sd_pagination on; }
        location = /whole { sd_generate sagemaker; }
        location = /bf16 { sd_generate; sd_precision bf16; }
END

my $log = $ENV{SD_VALGRIND_LOG} = "$t->{dir}/valgrind";
$ENV{SD_VALGRIND_LEAKS} = 'definite,indirect,possible';

$t->start(foreground => 'daemon off; master_process off;');

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 2,
             seed => 7);
my %long = (%small, steps => 1000);
my $mixed = 'multipart/mixed';


for my $format (qw/ jpeg png multipart sse mjpeg json /) {
    my $r = $t->post('/generate', { %small, format => $format });

    is($r->status(), 200, $format);
    ok($r->complete(), "$format is whole");
}

for my $sampler (qw/ ddim euler euler_a /) {
    my $r = $t->post('/generate', {
        %small, sampler => $sampler, preview => 'vae', latent => 'all', n => 2,
        output_format => 'png', steps => 3, negative_prompt => 'night'
    }, Accept => $mixed);

    my @parts = $r->parts();
    is($parts[-1]{event}, 'final', "$sampler: two pictures");
}

is($t->get('/generate?prompt=a+hill&steps=1&width=64&height=64')->status(),
    200, 'GET');
is($t->request('HEAD', '/generate?prompt=a+hill')->status(), 200, 'HEAD');
is($t->request('OPTIONS', '/generate')->status(), 204, 'OPTIONS');
is($t->post('/bf16', { %small })->status(), 503,
    'a precision that valgrind\'s CPU does not have');


# states

my $all = json_decode($t->post('/generate', {
    %small, format => 'json', latent => 'all', preview_every => 1
})->body());
my $state = $all->{previews}[0]{latents};

for ([ 200 ], [ 200, prompt => 'a blue house' ], [ 409, steps => 3 ]) {
    my ($status, @change) = @$_;

    is($t->post('/generate', { %small, latents => $state, @change })->status(),
        $status, "a state @change");
}

my ($step, %page) = (0);

while ($step < 3) {
    my $r = json_decode($t->post('/invocations', { prompt => 'a red house',
        parameters => { num_inference_steps => 3, num_interim_images => 2,
                        width => 64, height => 64, starting_step => $step,
                        %page } })->body());

    $page{latents} = $r->{latents};
    $step = $r->{step} // 99;
}

is($step, 3, 'pages');
is($t->post('/whole', { %small })->status(), 200, 'SageMaker, no pages');


# refused

for ([ 400, '{' ], [ 400, {} ], [ 400, { %small, width => 65 } ],
     [ 400, { %small, latents => '***' } ], [ 413, ' ' x 2000000 ],
     [ 400, { %small, latents => encode_base64('x' x 5000, '') } ],
     [ 400, { prompt => "\xff" x 10 } ], [ 400, '[' x 5000 ],
     [ 200, { %small, colour => 'red', prompt => 'x ' x 4000 } ])
{
    my ($status, $body) = @$_;

    is($t->post('/generate', $body)->status(), $status,
        "$status: " . substr(ref $body ? json_encode($body) : $body, 0, 40));
}

is($t->post('/generate', { %small }, Accept => 'a/b')->status(), 406,
    'no such format');
is($t->request('PUT', '/generate')->status(), 405,
    'no such method');
is($t->post('/generate', 'x', 'Content-Type' => 'text/xml')->status(), 415,
    'another type');


# who leaves: while his picture is made, while it waits, in mid-request

my $r = $t->post('/generate', { %long }, Accept => $mixed);

while (my $p = $r->part()) {
    last if $p->{event} eq 'preview';
}

my $w = $t->post('/generate', { %long }, Accept => $mixed);
ok((wait_for { $t->status()->{queue}{waiting} == 1 } 60), 'one waits');
is($t->post('/generate', { %small })->status(), 503, 'one is too many');

$w->close();
$r->close();
$t->request('POST', '/generate', body => '{"prompt":',
            headers => { 'Content-Length' => 1000 })->close();

ok((wait_for { my $s = $t->status(); $s->{running} == 0
               && $s->{connections} == 1 } 60), 'nothing is left');


# deadlines

is($t->post('/timeout', { %long })->status(), 504, 'too late');

my @parts = $t->post('/timeout', { %long }, Accept => $mixed)->parts();
is($parts[-1]{event}, 'error', 'too late in mid-stream');


# the end: with nothing to do, and again in the middle of a picture

ended('QUIT');

# nginx leaves the pools of connections that it cuts: valgrind's "possible"
$ENV{SD_VALGRIND_LEAKS} = 'definite,indirect';

$t->start(foreground => 'daemon off; master_process off;');
$r = $t->post('/generate', { %long }, Accept => $mixed);

while (my $p = $r->part()) {
    last if $p->{event} eq 'preview';
}

ended('TERM');
$t->stop();


sub ended {
    my ($signal) = @_;

    $t->signal($signal);
    waitpid $t->{child}, 0;
    is($? >> 8, 0, "$signal: exit code");
    $t->{child} = $t->{pid} = undef;

    my $said = slurp($log);

    like($said, qr/ERROR SUMMARY: 0 errors/,
         "$signal: valgrind found no error, no leak") or diag $said;
}


done_testing();
