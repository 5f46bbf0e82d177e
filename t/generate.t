#!/usr/bin/perl

# The sd command: generate and check, their options, files and exit codes.

use strict;
use warnings;

use File::Temp qw(tempdir);
use FindBin;
use JSON::PP;
use Test::More;

chdir "$FindBin::Bin/.." or die "$!";

my $sd = ($ENV{SD_BUILD} || 'build') . '/sd';
my $tiny = 't/golden/models/sd15';
my $dir = tempdir(CLEANUP => 1);


# exit code and output of sd with these arguments

sub sd {
    my @args = map { my $a = $_; $a =~ s/'/'\\''/g; "'$a'" } @_;
    my $out = `$sd @args 2>&1 </dev/null`;

    return ($? >> 8, $out);
}


sub slurp {
    my ($path) = @_;

    open(my $f, '<:raw', $path) or return '';
    local $/;

    return scalar <$f>;
}


sub generate {
    my ($name, @args) = @_;

    my ($rc, $out) = sd('generate', '--model', $tiny, '--prompt', 'a red house',
                        '--steps', 4, '--seed', 5, '-o', "$dir/$name", @args);

    is($rc, 0, "generate $name @args") or diag $out;

    return slurp("$dir/$name");
}


# a safetensors file: the header, decoded, and the data

sub tensors {
    my $bytes = slurp($_[0]);
    my $len = length $bytes < 8 ? 0 : unpack('Q<', $bytes);

    return $len ? (decode_json(substr($bytes, 8, $len)),
                   substr($bytes, 8 + $len)) : ({}, '');
}


# help and mistakes

my ($rc, $out) = sd('--help');
is($rc, 0, 'sd --help');
like($out, qr/generate.*check/s, 'lists the commands');

($rc, $out) = sd();
is($rc, 2, 'no command');

($rc, $out) = sd('paint');
is($rc, 2, 'an unknown command');
like($out, qr/no command "paint"/, 'is named');

for my $command ('generate', 'check') {
    ($rc, $out) = sd($command, '--help');
    is($rc, 0, "$command --help");
    like($out, qr/^sd $command/, 'is its usage');

    ($rc, $out) = sd($command, '--nonsense');
    is($rc, 2, "$command --nonsense");
}

for ([ '--steps', 'x' ], [ '--steps', 0 ], [ '--size', '64' ],
     [ '--size', '64x64x' ], [ '--sampler', 'nonsense' ],
     [ '--guidance', 'much' ], [ '--seed', -1 ], [ '-o', 'out.gif' ],
     [ '-o', 'out' ], [ '--precision', 'fp8' ], [ '--quality', 101 ],
     [ 'word' ])
{
    ($rc, $out) = sd('generate', '--prompt', 'x', @$_);
    is($rc, 2, "generate @$_");
}

($rc, $out) = sd('generate');
is($rc, 2, 'generate without a prompt');

($rc, $out) = sd('generate', '--prompt', 'x', '--latents', "$dir/none");
is($rc, 2, 'latents from a file that is not there');
like($out, qr/No such file/, 'which is said');

($rc, $out) = sd('generate', '--model', $dir, '--prompt', 'x');
is($rc, 1, 'a model that is none');
like($out, qr/model_index\.json: No such file/, 'which is said');

($rc, $out) = sd('generate', '--model', $tiny, '--prompt', 'x', '--size',
                 '60x64');
is($rc, 1, 'a width that is not a multiple of 8');
like($out, qr/width must be a multiple of 8/, 'which is said');

($rc, $out) = sd('generate', '--model', $tiny, '--prompt', 'x', '--isa', 'vax');
is($rc, 1, 'a machine that this is not');
like($out, qr/vax/, 'which is said');


# pictures

my $jpeg = generate('a.jpg');
like($jpeg, qr/^\xff\xd8\xff/, 'a JPEG');
is(generate('a.jpg'), $jpeg, 'the same again');
is(generate('a.jpg', '--threads', 3), $jpeg, 'the same on three threads');
isnt(generate('a.jpg', '--negative', 'night'), $jpeg, 'another picture');

my $png = generate('a.png', '--negative', 'night', '--size', '104x72');
like($png, qr/^\x89PNG/, 'a PNG');
is(join('x', unpack('x16 NN', $png)), '104x72', 'of that size');
like($png, qr/parameters\0.*a red house\nNegative prompt: night\nSteps: 4, /s,
     'with the parameters in it');

($rc, $out) = sd('generate', '--model', $tiny, '--prompt', 'a red house',
                 '--steps', 4, '--seed', 4, '--n', 3, '-o', "$dir/n.jpg");
is($rc, 0, 'three pictures');
is(slurp("$dir/n-1.jpg"), $jpeg, 'the second is that of the next seed');
isnt(slurp("$dir/n-2.jpg"), $jpeg, 'the third another');
ok(!-e "$dir/n.jpg", 'and none has the plain name');
like($out, qr/n-2\.jpg: 128x128, seed 6, ddim, step 4 of 4/, 'all are told');

is(generate('p.jpg', '--preview-every', 1), $jpeg, 'previews change nothing');
like(slurp("$dir/p-step00$_.jpg"), qr/^\xff\xd8\xff/, "preview $_") for 1 .. 3;
ok(!-e "$dir/p-step004.jpg", 'the last one is the picture');

($rc, $out) = sd('generate', '--model', $tiny, '--prompt', 'x' x 1000,
                 '--steps', 1, '--size', '8x8', '-o', "$dir/long.jpg");
is($rc, 0, 'a long prompt');
like($out, qr/the prompt is \d+ tokens long, and was cut at 77/, 'is told');

($rc, $out) = sd('generate', '--model', $tiny, '--prompt', 'x', '--quiet',
                 '--steps', 1, '--size', '8x8', '-o', "$dir/quiet.jpg");
is($out, '', 'nothing is told with --quiet');


# states and latents

generate('half.jpg', '--stop', 2, '--state', "$dir/state");
my ($header, $data) = tensors("$dir/state");
is($header->{__metadata__}{step}, 2, 'a state at step 2');
is(generate('a.jpg', '--latents', "$dir/state"), $jpeg, 'goes on to the same');

($rc, $out) = sd('generate', '--model', $tiny, '--prompt', 'x', '--steps', 5,
                 '--latents', "$dir/state", '-o', "$dir/x.jpg");
is($rc, 1, 'a state of another number of steps');
like($out, qr/num_inference_steps 4/, 'which is said');

($rc, $out) = sd('generate', '--model', 'model', '--prompt', 'x', '--steps', 4,
                 '--latents', "$dir/state", '-o', "$dir/x.jpg");
is($rc, 1, 'a state of another model');
like($out, qr/model/, 'which is said');


# dumps

is(generate('d.jpg', '--dump', "$dir/dump", '--size', '128x64'),
   generate('e.jpg', '--size', '128x64'), 'a dump changes nothing');

my %shapes = (cond => [1, 77, 32], uncond => [1, 77, 32],
              unet_in_000 => [2, 4, 8, 16], unet_out_000 => [2, 4, 8, 16],
              latent_000 => [1, 4, 8, 16], latent_003 => [1, 4, 8, 16],
              image => [1, 3, 64, 128]);

for my $name (sort keys %shapes) {
    ($header, $data) = tensors("$dir/dump/$name.safetensors");
    is_deeply($header->{$name}{shape}, $shapes{$name}, "dump: $name");
    is(length $data, $header->{$name}{data_offsets}[1], 'and all of its data');
}

ok(!-e "$dir/dump/latent_004.safetensors", 'four latents of four steps');


# check

($rc, $out) = sd('check', $tiny);
is($rc, 0, 'check');
like($out, qr/^unet +\d+ +\d+\.\d +\d+\.\d$/m, 'a table of its parts');
like($out, qr/peak +\d+\.\d\n/, 'and what it will take');

($rc, $out) = sd('check', "$dir/none");
is($rc, 1, 'check of a directory that is not there');
like($out, qr/none: no such directory/, 'which is said');

system("cp -rL $tiny $dir/broken");
truncate("$dir/broken/unet/diffusion_pytorch_model.fp16.safetensors", 50000);
($rc, $out) = sd('check', "$dir/broken");
is($rc, 1, 'check of a truncated model');
like($out, qr/unet\/diffusion_pytorch_model\.fp16\.safetensors: .*truncated/,
     'which is said');


# what a process takes is what check says, within a twentieth

my $size = '512x384';

($rc, $out) = sd('check', '--size', $size, '--steps', 2);
my ($planned) = $out =~ /peak +([\d.]+)/;

my $pid = fork;

if ($pid == 0) {
    open(STDERR, '>', '/dev/null');
    exec($sd, 'generate', '--prompt', 'a lake', '--size', $size, '--steps', 2,
         '-o', "$dir/memory.jpg");
    exit 127;
}

my $peak = 0;

while (waitpid($pid, 1) == 0) {
    my ($kb) = slurp("/proc/$pid/status") =~ /VmHWM:\s+(\d+)/;
    $peak = $kb / 1024 if $kb && $kb / 1024 > $peak;
    select(undef, undef, undef, 0.005);
}

is($?, 0, "a picture of $size");

SKIP: {
    skip 'a sanitizer has memory of its own', 1 if $ENV{SD_SANITIZED};

    cmp_ok(abs($peak / $planned - 1), '<=', 0.05,
           sprintf('peak memory: %.1f MiB planned, %.1f measured', $planned,
                   $peak));
}

done_testing();
