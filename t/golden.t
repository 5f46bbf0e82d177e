#!/usr/bin/perl

# The sd command against diffusers, from outside: with the same initial noise
# it dumps the same tensors and paints the same picture.  t/unit/golden.c does
# so from inside, on every instruction set.

use warnings;
use strict;

use File::Temp qw/ tempdir /;
use FindBin;
use JSON::PP;
use Test::More;

chdir "$FindBin::Bin/.." or die "$!";

my $sd = ($ENV{SD_BUILD} || 'build') . '/sd';
my $dir = tempdir(CLEANUP => 1);

my $limit = 5e-5;       # norm of the difference over the norm
my $psnr = 60;          # dB, of the picture's bytes


# a safetensors file: metadata, { name => { shape, values } }; all is fp32

sub tensors {
    my ($path) = @_;

    open my $f, '<:raw', $path or return ({}, {});
    my $bytes = do { local $/; <$f> };
    my $n = unpack 'Q<', $bytes;
    my $header = decode_json(substr $bytes, 8, $n);
    my $meta = delete $header->{__metadata__};

    for my $t (values %$header) {
        my ($from, $to) = @{$t->{data_offsets}};

        $t->{dtype} eq 'F32' or die "$path: not fp32\n";
        $t->{bytes} = substr $bytes, 8 + $n + $from, $to - $from;
        $t->{values} = [ unpack 'f<*', $t->{bytes} ];
    }

    return ($meta, $header);
}


sub write_latents {
    my ($path, $t) = @_;

    my $header = JSON::PP->new->encode({ latents => {
        dtype => 'F32', shape => $t->{shape},
        data_offsets => [ 0, length $t->{bytes} ] } });

    $header .= ' ' x (-length($header) % 8);

    open my $f, '>:raw', $path or die "$path: $!";
    print $f pack('Q<', length $header), $header, $t->{bytes};
    close $f or die "$path: $!";
}


sub relative {
    my ($got, $want) = @_;
    my ($diff, $norm) = (0, 0);

    for my $i (0 .. $#$want) {
        $diff += ($got->[$i] - $want->[$i]) ** 2;
        $norm += $want->[$i] ** 2;
    }

    return sqrt($diff / $norm);
}


# of what was dumped before rounding, rounded as a JPEG encoder would get it

sub decibels {
    my ($got, $want) = @_;
    my $sum = 0;

    for my $i (0 .. $#$want) {
        my ($a, $b) = map { my $v = int(127.5 * $_ + 128);
                            $v < 0 ? 0 : $v > 255 ? 255 : $v }
                      $got->[$i], $want->[$i];
        $sum += ($a - $b) ** 2;
    }

    return $sum ? 10 * log(255 ** 2 * @$want / $sum) / log(10) : 999;
}


my @files = glob 't/golden/*.safetensors';
cmp_ok(scalar @files, '>=', 8, 'golden files');

for my $file (@files) {
    my ($name) = $file =~ m{([^/]+)\.safetensors$};
    my ($meta, $want) = tensors($file);

    write_latents("$dir/latents", delete $want->{latents});

    system($sd, 'generate', '--quiet', '--model', $meta->{model},
           '--prompt', $meta->{prompt}, '--negative', $meta->{negative_prompt},
           '--steps', $meta->{steps}, '--guidance', $meta->{guidance},
           '--sampler', $meta->{sampler},
           '--size', "$meta->{width}x$meta->{height}",
           '--latents', "$dir/latents", '--dump', "$dir/$name",
           '-o', "$dir/$name.png");

    is($?, 0, "$name: sd generate --latents --dump");

    my ($worst, $of) = (0, 'none');

    for my $tensor (sort keys %$want) {
        my $w = $want->{$tensor};
        my $g = (tensors("$dir/$name/$tensor.safetensors"))[1]{$tensor};

        if (!$g || "@{$g->{shape}}" ne "@{$w->{shape}}") {
            fail("$name: $tensor is dumped, in its shape");
            next;
        }

        my $error = relative($g->{values}, $w->{values});

        ($worst, $of) = ($error, $tensor) unless $error <= $worst;

        if ($tensor eq 'image') {
            my $db = decibels($g->{values}, $w->{values});
            cmp_ok($db, '>=', $psnr, sprintf '%s: %.1f dB', $name, $db);
        }
    }

    cmp_ok($worst, '<=', $limit,
        sprintf '%s: %d tensors, worst relative error %.2g, of %s', $name,
        scalar keys %$want, $worst, $of);

    ok(-s "$dir/$name.png", "$name: a picture");
}

done_testing();
