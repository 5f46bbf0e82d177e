#!/usr/bin/perl

# A request costs at most what its location allows, in steps, pixels and
# pictures: in every dialect, by either method, under every name of a field, and
# when it goes on from a state, whatever that says.

use warnings;
use strict;

use FindBin;
use MIME::Base64;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $limits = 'sd_max_steps 10; sd_max_pixels 4096; sd_max_images 2;';

my $t = SD->new(http => <<'END', server => <<"END");
    sd_model %%MODEL%%;
    client_max_body_size 1m;
END
        location = /free { sd_generate; sd_max_steps 1000; }
        location = /native { sd_generate; sd_get on; $limits }
        location = /sagemaker { sd_generate sagemaker; $limits }
        location = /pages { sd_generate sagemaker; sd_pagination on; $limits }
END

$t->start();

my %most = (prompt => 'a red house', width => 64, height => 64, steps => 10,
            seed => 7);


# how many steps the engine has done for a request, and its answer

sub cost {
    my ($uri, $fields, $get) = @_;

    my $before = $t->status()->{steps};
    my $args = join '&', map { "$_=$fields->{$_}" } sort keys %$fields;
    my $r = $get ? $t->get("$uri?" . $args =~ s/ /+/gr)
            : $t->post($uri, $fields, Accept => 'application/json');

    my ($status, $body) = ($r->status(), $r->body());

    return ($status, eval { json_decode($body) },
            $t->status()->{steps} - $before);
}


sub refused {
    my ($name, $param, $uri, $fields, $get) = @_;

    my ($status, $answer, $steps) = cost($uri, $fields, $get);

    like($status, qr/^4(?:00|09)$/, "$name: refused");
    like($answer->{error}{param}, $param, "$name: by name");
    is($steps, 0, "$name: no step");
}


# the most, and one more of anything

for my $uri ('/native', '/sagemaker', '/pages') {
    my $n = $uri eq '/pages' ? 1 : 2;
    my ($status, $answer, $steps) = cost($uri, { %most, n => $n });

    is($status, 200, "$uri: the most");
    is($steps, 10 * $n, "$uri: costs what it says");

    refused("$uri, $_", qr/num_inference_steps/, $uri, { %most, $_ => 11 })
        for qw/ steps num_inference_steps /;
    refused("$uri, parameters", qr/num_inference_steps/, $uri,
            { prompt => 'x', parameters => { width => 64, height => 64,
                                             steps => 11 } });
    refused("$uri, width", qr/width/, $uri, { %most, width => 72 });
    refused("$uri, height", qr/height/, $uri, { %most, height => 72 });
    refused("$uri, a strip", qr/width/, $uri,
            { %most, width => 16384, height => 8 });
    refused("$uri, the model's own size", qr/width|height/, $uri,
            { prompt => 'x', steps => 1 });
    refused("$uri, the default of steps", qr/num_inference_steps/, $uri,
            { prompt => 'x', width => 64, height => 64 });
    refused("$uri, $_", qr/num_images_per_prompt/, $uri, { %most, $_ => 3 })
        for qw/ n num_images_per_prompt /;
    refused("$uri, far beyond", qr/./, $uri, { %most, $_ => 1e300 })
        for qw/ steps width height n num_interim_images /;
}

my %get = (%most, n => 2, format => 'json');
my ($status, undef, $steps) = cost('/native', \%get, 1);

is($status, 200, 'GET: the most');
is($steps, 20, 'GET: costs what it says');
refused('GET, steps', qr/num_inference_steps/, '/native', { %get, steps => 11 },
        1);
refused('GET, width', qr/width/, '/native', { %get, width => 72 }, 1);
refused('GET, n', qr/num_images_per_prompt/, '/native', { %get, n => 3 }, 1);


# decoded previews: one for a step, at most

my (undef, $answer) = cost('/native', { %most, preview => 'vae',
                                        preview_every => 1, previews => 1000 });
is(scalar @{$answer->{previews}}, 9, 'a preview for each step but the last');


# states of somewhere else

sub state {
    my ($every, %fields) = @_;

    my (undef, $answer) = cost('/free', { %most, %fields, latent => $every });

    return $answer->{previews}[0]{latents};
}

my $ours = state(4);
my $long = state(4, steps => 20);
my $large = state(4, width => 128);

for my $uri ('/native', '/sagemaker', '/pages') {
    my %p = (prompt => 'a red house');

    my ($status, undef, $steps) = cost($uri, { %p, latents => $ours });
    is($status, 200, "$uri: a state to go on from");
    is($steps, 6, "$uri: costs what is left of it");

    refused("$uri, a state of more steps", qr/num_inference_steps/, $uri,
            { %p, latents => $long });
    refused("$uri, of more pixels", qr/width/, $uri, { %p, latents => $large });

    # what the request says does not change what the state is

    refused("$uri, of more steps, denied", qr/steps|latents/, $uri,
            { %p, latents => $long, steps => 10 });
    refused("$uri, of more pixels, denied", qr/width|latents/, $uri,
            { %p, latents => $large, width => 64, height => 64 });

    # and one may lie

    my $bytes = decode_base64($long);

    for ([ '"steps":"20"', '"steps":"10"' ], [ '"steps":"20"', '"steps":"-9"' ],
         [ '"step":"4"', '"step":"9"' ], [ '"steps":"20"', '"step":"999"' ])
    {
        my ($from, $to) = @$_;
        (my $lie = $bytes) =~ s/$from/$to/ or die "no $from";

        my ($status, undef, $steps) =
            cost($uri, { %p, latents => encode_base64($lie, '') });

        cmp_ok($steps, '<=', 10, "$uri: a state that says $to: $status");
    }
}

$t->stop();

done_testing();
