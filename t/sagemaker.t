#!/usr/bin/perl

# The SageMaker dialect, as boto3's clients speak it: no Accept, JSON both
# ways, and pages of steps that a client loops over.

use warnings;
use strict;

use FindBin;
use MIME::Base64;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $t = SD->new(server => <<'END');
        client_max_body_size 4m;
        location = /invocations { sd_generate sagemaker; sd_pagination on; }
        location ~ ^/endpoints/[\w-]+/invocations$ {
            sd_generate sagemaker;
            sd_pagination on;
        }
        location = /whole { sd_generate sagemaker; sd_pagination off; }
END

$t->start();

my $steps = 6;


# what invoke_endpoint() sends: a content type, maybe, and never an Accept

sub invoke {
    my ($uri, %parameters) = @_;

    my $r = $t->request('POST', $uri, body => json_encode({
        prompt => 'a red house',
        parameters => { num_inference_steps => $steps, guidance_scale => 9,
                        negative_prompt => 'people', seed => 7,
                        num_images_per_prompt => 1, width => 64, height => 64,
                        %parameters } }));

    return ($r->status(), json_decode($r->body()), $r);
}


# whole

my ($status, $whole, $r) = invoke('/whole', starting_step => 0,
                                  num_interim_images => 2);

is($status, 200, 'without pages');
is($r->header('Content-Type'), 'application/json', 'JSON');
is(scalar @{$whole->{images}}, 1, 'one picture');

my $final = decode_base64($whole->{images}[0]);
is(picture_size($final), 'jpeg 64x64', 'a JPEG');


# pages, of every length

for my $page (1 .. $steps) {

    my ($step, $latents, $images, $calls) = (0, undef, 0, 0);
    my $body;

    while ($step < $steps) {
        ($status, $body) = invoke('/invocations', starting_step => $step,
            num_interim_images => $page,
            defined $latents ? (latents => $latents) : ());

        last unless is($status, 200, "page of $page from step $step")
                    || diag(json_encode($body));

        my $run = $page < $steps - $step ? $page : $steps - $step;

        is($body->{step}, $step + $run, 'the step it came to');
        is(scalar @{$body->{images}}, $run, 'a picture each step');

        $step = $body->{step};
        $latents = $body->{latents};
        last if ++$calls > $steps;
    }

    is(scalar(grep { picture_size(decode_base64($_)) ne 'jpeg 64x64' }
              @{$body->{images}}), 0, 'all of them JPEGs');

    same(decode_base64($body->{images}[-1]), $final,
        "pages of $page give the same final picture");

    # the call after the last one is no error

    ($status, $body) = invoke('/invocations', starting_step => $steps,
        num_interim_images => $page, latents => $latents);

    is($status, 200, 'a call beyond the last step');
    is($body->{step}, $steps, 'is at the end');
    same(decode_base64($body->{images}[-1]), $final, 'and has the picture');
}

($status, my $body) = invoke('/endpoints/my-model-1/invocations',
                             num_interim_images => 2, starting_step => 0);
is($status, 200, 'by the address of an endpoint');
is($body->{step}, 2, 'two steps');


# latents is safetensors

my $data = decode_base64($body->{latents});
my $header = json_decode(substr $data, 8, unpack 'Q<', $data);
is_deeply($header->{latents}{shape}, [ 1, 4, 8, 8 ], 'a tensor "latents"');


# initial noise from the client

my $noise = pack 'f<*', map { sin($_ * 12.9898) * 1.4 } 1 .. 4 * 8 * 8;
my $text = json_encode({ latents => { dtype => 'F32', shape => [ 1, 4, 8, 8 ],
                                      data_offsets => [ 0, length $noise ] } });
my $latents = encode_base64(pack('Q<', length $text) . $text . $noise, '');

($status, $body) = invoke('/whole', latents => $latents, starting_step => 0);
is($status, 200, 'initial noise');
my $first = $body->{images}[0];
differ(decode_base64($first), $final, 'makes another picture');

($status, $body) = invoke('/whole', latents => $latents, starting_step => 0,
                          seed => 8);
same($body->{images}[0], $first, 'whatever the seed');


# errors

for ([ 'a step beyond the end', starting_step => $steps + 1 ],
     [ 'no latents to go on from', starting_step => 2 ],
     [ 'bad base64', starting_step => 2, latents => '!' ],
     [ 'steps as text', num_inference_steps => 'ten' ])
{
    my ($name, %parameters) = @$_;

    ($status, $body, $r) = invoke('/invocations', %parameters);

    is($status, 400, $name);
    ok(length $body->{message}, "$name: a message");
    is($body->{message}, $body->{error}{message}, "$name: the same in error");
    is($r->header('x-amzn-ErrorType'), 'ValidationError', "$name: the type");
}

$text =~ s/\[1,4,8,8\]/[1,4,4,16]/;
my $other = encode_base64(pack('Q<', length $text) . $text . $noise, '');

($status) = invoke('/whole', latents => $other, starting_step => 0);
ok($status == 400 || $status == 409, 'a latent of another shape');

$t->stop();

done_testing();
