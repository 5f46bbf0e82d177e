#!/usr/bin/perl

# The invariants that a client can see: the same request gives the same bytes,
# whole or resumed at any step, with previews or without, alone or together.

use warnings;
use strict;

use FindBin;
use MIME::Base64;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $t = SD->new(http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    client_max_body_size 4m;
END
        location = /generate { sd_generate; }
END

$t->start();

my $mixed = 'multipart/mixed';


sub final {
    my ($body) = @_;

    my $r = $t->post('/generate', $body);
    my $data = $r->body();

    return $r->status() == 200 ? $data : $r->status() . " $data";
}


# the state after each step

sub states {
    my ($body) = @_;

    my $all = json_decode($t->post('/generate', {
        %$body, format => 'json', latent => 'all', preview_every => 1
    })->body());

    return map { $_->{step} => decode_base64($_->{latents}) }
           @{$all->{previews}}, { %{$all->{images}[0]},
                                  step => $body->{steps} };
}


for my $sampler (qw/ ddim euler /) {

    my $steps = 6;
    my %small = (prompt => 'a red house', width => 64, height => 64,
                 steps => $steps, seed => 7, sampler => $sampler,
                 output_format => 'png');

    my $png = final({ %small, format => 'png' });
    is(picture_size($png), 'png 64x64', "$sampler: a picture");

    # everything that must not matter

    for ([ preview => 'none' ], [ preview => 'vae' ], [ preview_every => 2 ],
         [ latent => 'all' ], [ latent => 'none' ])
    {
        my @parts = $t->post('/generate', { %small, @$_ },
                             Accept => $mixed)->parts();
        same($parts[-1]{body}, $png, "$sampler: @$_");
    }

    # in company

    my @r = map { $t->post('/generate', { %small, seed => $_ },
                           Accept => $mixed) } 6, 7, 8;
    my @finals = map { ($_->parts())[-1]{body} } @r;
    same($finals[1], $png, "$sampler: in company");

    my @together = grep { $_->{event} eq 'final' }
                   $t->post('/generate', { %small, seed => 6, n => 2 },
                            Accept => $mixed)->parts();
    is(scalar @together, 2, "$sampler: two of a request");

    my %by_image = map { $_->{image} => $_->{body} } @together;
    same($by_image{0}, $finals[0], "$sampler: the first as alone");
    same($by_image{1}, $png, "$sampler: the second as alone");

    # from each step; a format that collects, since a stream may leave out
    # previews that a newer one has overtaken

    my %latent = states({ %small });

    for my $step (1 .. $steps) {
        ok($latent{$step}, "$sampler: a latent of step $step") or next;

        my %resume = (%small, latents => encode_base64($latent{$step}, ''),
                      starting_step => $step, format => 'png');

        same(final({ %resume }), $png, "$sampler: resumed at step $step");

        delete $resume{starting_step};
        same(final({ %resume }), $png, "$sampler: the state knows the step");

        next if $step == $steps;

        # and from a state that a resumed run gave

        my %next = states({ %resume });
        same($next{$step + 1}, $latent{$step + 1},
            "$sampler: step @{[ $step + 1 ]} from step $step is the same");
    }

    # the state is the authority

    my $state = encode_base64($latent{2}, '');

    for ([ 'other steps', steps => 8 ], [ 'another size', width => 128 ],
         [ 'another sampler',
           sampler => $sampler eq 'ddim' ? 'euler' : 'ddim' ])
    {
        my ($name, %change) = @$_;
        my $r = $t->post('/generate', { %small, latents => $state, %change });

        is($r->status(), 409, "$sampler: $name") or diag $r->body();
    }

    my $r = $t->post('/generate', { %small, latents => $state,
                                    prompt => 'a blue house',
                                    format => 'png' });
    is($r->status(), 200, "$sampler: another prompt branches");
    differ($r->body(), $png, "$sampler: into another picture");
}

# initial noise of one's own, of one picture or of each

sub noise {
    my ($n, @values) = @_;

    my $header = json_encode({ latents => {
        dtype => 'F32', shape => [ $n, 4, 8, 8 ],
        data_offsets => [ 0, 4 * @values ] } });

    return encode_base64(pack('Q<', length $header) . $header
                         . pack('f<*', @values), '');
}

sub images {
    my $r = $t->post('/generate', { prompt => 'a red house', width => 64,
                                    height => 64, steps => 3, seed => 7,
                                    format => 'json', @_ });
    my $all = json_decode($r->body());

    return $r->status() == 200 ? map { $_->{b64_json} } @{$all->{images}}
                               : "$all->{error}{param}: "
                                 . $all->{error}{message};
}

my @noise = map { 1.4 * sin($_ ** 2) } 1 .. 256;
my @other = map { 1.4 * cos($_ ** 2) } 1 .. 256;

my ($one) = images(latents => noise(1, @noise));
my ($two) = images(latents => noise(1, @other), seed => 8);
my @both = images(latents => noise(2, @noise, @other), n => 2);

differ($one, $two, 'other noise is another picture');
is(scalar @both, 2, 'noise for two');
same($both[0], $one, 'the first has the first noise');
same($both[1], $two, 'the second has the second');
same((images(latents => noise(2, @noise, @other), n => 2,
             sampler => 'euler_a'))[1],
    (images(latents => noise(1, @other), seed => 8, sampler => 'euler_a'))[0],
    'and what is added later is that of its seed');

for ([ 'noise of two for one', noise(2, @noise, @other) ],
     [ 'noise of one for two', noise(1, @noise), n => 2 ],
     [ 'of two in mid-way', noise(2, @noise, @other), n => 2,
       starting_step => 1 ],
     [ 'a state for two', encode_base64((values %{{
         states({ prompt => 'a red house', width => 64, height => 64,
                  steps => 3 }) }})[0], ''), n => 2 ])
{
    my ($name, $latents, @fields) = @$_;

    like((images(latents => $latents, @fields))[0], qr/^latents: latents: /,
        $name);
}

$t->stop();

done_testing();
