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

$t->stop();

done_testing();
