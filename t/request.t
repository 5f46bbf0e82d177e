#!/usr/bin/perl

# A request and its answer: methods, formats, headers, errors.

use warnings;
use strict;

use FindBin;
use MIME::Base64;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $t = SD->new(http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 50;
    sd_max_pixels 65536;
    sd_max_images 2;
    client_max_body_size 256k;
    client_body_buffer_size 1k;
    large_client_header_buffers 4 100k;
    include %%TOP%%/conf/errors.conf;
END
        error_page 494 =431 /sd-error;
        error_page 400 404 405 408 413 414 429 431 500 502 503 504 /sd-error;
        location = /sd-error {
            internal;
            default_type application/json;
            return 200 $sd_error_json;
        }
        location = /generate { sd_generate; sd_get on; sd_cors *; }
        location = /post { sd_generate; }
        location = /cors { sd_generate; sd_cors https://example.com; }
        location = /gzip {
            sd_generate;
            gzip on; gzip_types *; gzip_min_length 1;
        }
        location = /intercept {
            sd_generate;
            sd_intercept_errors on;
            error_page 400 = @mine;
        }
        location @mine { return 418; }
        location = /if { sd_generate; if ($arg_x) { set $y 1; } }
        location = /except {
            sd_generate; sd_get on;
            limit_except GET { deny all; }
        }
END

$t->start();

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 2,
             seed => 7);


# POST

my $r = $t->post('/generate', { %small });
my $jpeg = $r->body();

is($r->status(), 200, 'POST');
is($r->header('Content-Type'), 'image/jpeg', 'a JPEG by default');
is(picture_size($jpeg), 'jpeg 64x64', 'of the size');
is($r->header('Content-Length'), length $jpeg, 'with its length');
is($r->header('SD-Seed'), 7, 'the seed');
is($r->header('SD-Steps'), 2, 'the steps');
like($r->header('Cache-Control'), qr/no-store/, 'not to be stored');
is($r->header('X-Accel-Buffering'), 'no', 'not to be buffered');
is($r->header('X-Content-Type-Options'), 'nosniff', 'not to be guessed');
like($r->header('X-Request-Id'), qr/^[0-9a-f]{32}$/, 'an id');

same($t->post('/generate', { %small })->body(), $jpeg, 'the same bytes again');
differ($t->post('/generate', { %small, seed => 8 })->body(), $jpeg,
    'other bytes for another seed');

$r = $t->post('/generate', { %small, width => 72, height => 40 });
is(picture_size($r->body()), 'jpeg 72x40', 'another size');


# formats, by Accept and by a field

my %types = ('image/png' => qr{^image/png$},
             'image/*' => qr{^image/jpeg$},
             'multipart/mixed' => qr{^multipart/mixed; boundary=},
             'text/event-stream' => qr{^text/event-stream},
             'multipart/x-mixed-replace'
                 => qr{^multipart/x-mixed-replace; ?boundary=},
             'application/json' => qr{^application/json});

for my $type (sort keys %types) {
    $r = $t->post('/generate', { %small }, Accept => $type);

    is($r->status(), 200, "Accept: $type");
    like($r->header('Content-Type'), $types{$type}, "$type is what comes");
    ok($r->complete(), "$type is whole");
}

$r = $t->post('/generate', { %small }, Accept => 'image/png');
is(picture_size($r->body()), 'png 64x64', 'a PNG');
like($r->body(), qr/tEXtparameters\0a red house\n/, 'that says what it is');

$r = $t->post('/generate', { %small, format => 'png' });
is(picture_size($r->body()), 'png 64x64', 'a PNG by the field');

$r = $t->post('/generate', { %small }, Accept => 'text/html');
is($r->status(), 406, 'nothing that we have');

$r = $t->post('/generate', { %small }, Accept => 'application/json');
my $json = json_decode($r->body());
same(decode_base64($json->{images}[0]{b64_json}), $jpeg,
    'the same picture in JSON');

$r = $t->post('/generate', { %small, n => 2 }, Accept => 'application/json');
$json = json_decode($r->body());
is(scalar @{$json->{images}}, 2, 'two pictures');
same(decode_base64($json->{images}[0]{b64_json}), $jpeg, 'the first as alone');
same(decode_base64($json->{images}[1]{b64_json}),
    $t->post('/generate', { %small, seed => 8 })->body(),
    'the second as alone with the next seed');


# GET, HEAD, OPTIONS

my $query = 'prompt=a+red%20house&width=64&height=64&steps=2&seed=7';

$r = $t->get("/generate?$query");
is($r->status(), 200, 'GET');
same($r->body(), $jpeg, 'the same picture');

$r = $t->get("/post?$query");
is($r->status(), 405, 'GET where it is off');
is($r->header('Allow'), 'HEAD, POST', 'what would do');
is(json_decode($r->body())->{error}{code}, 'method_not_allowed', 'in JSON');

for (qw/ PUT DELETE PATCH /) {
    $r = $t->request($_, '/generate', body => '{}');
    is($r->status(), 405, $_);
    is($r->header('Allow'), 'GET, HEAD, POST, OPTIONS', "$_: what would do");
}

my $before = $t->status();

$r = $t->request('HEAD', "/generate?$query");
is($r->status(), 200, 'HEAD');
is($r->header('Content-Type'), 'image/jpeg', 'the type that would come');
is($r->body(), '', 'no body');

is($t->status()->{steps}, $before->{steps}, 'HEAD starts no job');

is($t->request('HEAD', '/status')->status(), 200, 'HEAD of the status');
is($t->request('HEAD', '/ping')->status(), 200, 'HEAD of readiness');
is($t->post('/status', {})->status(), 405, 'POST to the status');
is($t->request('OPTIONS', '/post')->status(), 405, 'OPTIONS without sd_cors');

$r = $t->request('OPTIONS', '/cors', headers => {
    'Origin' => 'https://example.com',
    'Access-Control-Request-Method' => 'POST',
    'Access-Control-Request-Headers' => 'content-type' });

is($r->status(), 204, 'a preflight');
is($r->body(), '', 'without a body');
is($r->header('Access-Control-Allow-Origin'), 'https://example.com', 'origin');
is($r->header('Access-Control-Allow-Methods'), 'HEAD, POST, OPTIONS',
    'methods');
like($r->header('Access-Control-Allow-Headers'), qr/\bContent-Type\b/,
    'headers');
like($r->header('Access-Control-Max-Age'), qr/^\d+$/, 'how long');
is($r->header('Access-Control-Allow-Credentials'), undef, 'no credentials');

$r = $t->post('/generate', { %small });
is($r->header('Access-Control-Allow-Origin'), '*', 'CORS on an answer');
like($r->header('Access-Control-Expose-Headers'), qr/\bSD-Seed\b/,
    'what a page may read');
is($t->post('/post', { %small })->header('Access-Control-Allow-Origin'),
    undef, 'no CORS where it is off');

$r = $t->post('/cors', { steps => 0 });
is($r->header('Access-Control-Allow-Origin'), 'https://example.com',
    'CORS on an error');


# errors

for ([ 'no prompt', {}, 'prompt' ],
     [ 'steps of 0', { %small, steps => 0 }, 'num_inference_steps' ],
     [ 'a string for steps', { %small, steps => 'x' },
       'num_inference_steps' ],
     [ 'more steps than allowed', { %small, steps => 51 },
       'num_inference_steps' ],
     [ 'a width of 65', { %small, width => 65 }, 'width' ],
     [ 'more images than allowed', { %small, n => 3 },
       'num_images_per_prompt' ],
     [ 'an unknown sampler', { %small, sampler => 'best' }, 'sampler' ],
     [ 'bad base64', { %small, latents => '***' }, 'latents' ],
     [ 'no safetensors', { %small, latents => encode_base64('x' x 99, '') },
       'latents' ],
     [ 'huge guidance', { %small, guidance_scale => 1e30 },
       'guidance_scale' ])
{
    my ($name, $body, $param) = @$_;

    $r = $t->post('/generate', $body);
    is($r->status(), 400, $name);

    my $e = json_decode($r->body())->{error};
    is($e->{param}, $param, "$name: param");
    is($e->{type}, 'invalid_request_error', "$name: type");
    ok(length $e->{message} && length $e->{code}, "$name: message and code");
}

$r = $t->post('/generate', { %small, width => 512, height => 512 });
ok($r->status() == 400 || $r->status() == 413, 'too many pixels');

for ([ 'no JSON', '{"prompt":' ], [ 'an array', '[]' ], [ 'nothing', '' ],
     [ 'invalid UTF-8', "{\"prompt\":\"\xff\"}" ],
     [ 'deep JSON', '[' x 5000 . ']' x 5000 ])
{
    my ($name, $body) = @$_;

    $r = $t->post('/generate', $body);
    is($r->status(), 400, $name);
    is(json_decode($r->body())->{error}{type}, 'invalid_request_error',
        "$name: in JSON");
}

is($t->post('/generate', '<prompt/>', 'Content-Type' => 'text/xml')->status(),
    415, 'another type');

$r = $t->post('/generate', { %small, colour => 'red' });
is($r->status(), 200, 'a field that we do not know is not fatal');
like($r->header('SD-Warning') // '', qr/colour/, 'but reported');


# nginx's own errors look the same

$r = $t->post('/generate', ' ' x 300000);
is($r->status(), 413, 'a body that is too large');
is(json_decode($r->body())->{error}{code}, 'request_too_large', 'in JSON');

$r = SD::Stream->new(port => $t->port(), method => "BAD\x01", uri => '/');
is($r->status(), 400, 'no HTTP');
is(json_decode($r->body())->{error}{code}, 'bad_request', 'in JSON');

$r = $t->get('/nothing-here');
is($r->status(), 404, 'no such address');
is(json_decode($r->body())->{error}{code}, 'not_found', 'in JSON');


# addresses and headers that nginx lets through, and those that it does not

my $much = 'x' x 70000;

for ([ 414, 'args', "/generate?prompt=$much" ],
     [ 431, 'Accept', '/generate?prompt=x', Accept => $much ],
     [ 431, 'Content-Type', '/generate?prompt=x', 'Content-Type' => $much ])
{
    my ($status, $param, $uri, @headers) = @$_;

    $r = $t->get($uri, @headers);
    is($r->status(), $status, "a long $param");
    is(json_decode($r->body())->{error}{param}, $param, "$param: by name");
}

$r = $t->post('/generate', { %small }, Accept => $much);
is($r->status(), 431, 'a long Accept with a body');

for ([ 414, "/generate?$much$much" ], [ 431, '/generate', A => "$much$much" ]) {
    my ($status, $uri, @headers) = @$_;

    $r = $t->get($uri, @headers);
    is($r->status(), $status, "$status by nginx itself");
    is(json_decode($r->body())->{error}{type}, 'invalid_request_error',
        "$status: in JSON");
}


# bodies in several pieces, and in a file

$r = $t->request('POST', '/generate',
    headers => { 'Content-Type' => 'application/json',
                 'Transfer-Encoding' => 'chunked' },
    body => join '', (map { sprintf "%x\r\n%s\r\n", length, $_ }
                      json_encode({ %small }) =~ /(.{1,20})/g), "0\r\n\r\n");
same($r->body(), $jpeg, 'a chunked request');

$r = $t->post('/generate', json_encode({ %small }) . ' ' x 200000);
same($r->body(), $jpeg, 'a request in a temporary file');


# with what else nginx does

$r = $t->post('/gzip', { %small }, Accept => 'application/json',
              'Accept-Encoding' => 'gzip');
is($r->header('Content-Encoding'), 'gzip', 'gzip');
like($r->body(), qr/^\x1f\x8b/, 'compressed');
ok($r->complete(), 'whole');

same($t->post('/gzip', { %small }, 'Accept-Encoding' => 'identity')->body(),
    $jpeg, 'gzip on, but not asked for');

is($t->post('/intercept', {})->status(), 418, 'errors may be intercepted');
is($t->post('/intercept', { %small })->status(), 200, 'and pictures not');
same($t->post('/if?x=1', { %small })->body(), $jpeg, 'an if block');
same($t->get("/except?$query")->body(), $jpeg, 'limit_except lets GET in');
is($t->post('/except', { %small })->status(), 403, 'and POST not');

$t->stop();

done_testing();
