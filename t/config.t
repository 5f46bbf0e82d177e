#!/usr/bin/perl

# What `nginx -t` says: every directive's mistakes with the line, models that
# are not what they should be, and how long it takes.

use warnings;
use strict;

use File::Temp qw/ tempdir /;
use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;
use SD::Checkpoint;

my $dir = tempdir('sd-test-XXXXXX', TMPDIR => 1, CLEANUP => 1);
chmod 0755, $dir;

my $generate = 'location = /generate { sd_generate; }';


# runs -t over a configuration; the line that has "# here" in it is the one
# that the message must name

sub refused {
    my ($name, $message, %conf) = @_;

    $conf{server} //= $generate;

    my $t = SD->new(%conf);
    my ($rc, $out) = $t->check();

    my @lines = split /\n/, slurp("$t->{dir}/nginx.conf");
    my ($line) = grep { $lines[$_ - 1] =~ /# here/ } 1 .. @lines;

    isnt($rc, 0, "$name: refused");
    like($out, $message, "$name: the message");

    like($out, qr/ in \S+nginx\.conf:$line$/m, "$name: the line")
        if defined $line;
}


sub accepted {
    my ($name, %conf) = @_;

    my ($rc, $out) = SD->new(%conf)->check();

    is($rc, 0, "$name: accepted") or diag $out;
}


# what is accepted with a warning; undef: without any

sub warned {
    my ($name, $message, %conf) = @_;

    my ($rc, $out) = SD->new(server => $generate, %conf)->check();
    my ($warning) = $out =~ /(\[warn\].*)/;

    is($rc, 0, "$name: accepted") or diag $out;

    if ($message) {
        like($warning // '', $message, "$name: with a warning");

    } else {
        is($warning, undef, "$name: without a warning");
    }
}


# what is right

accepted('the least', server => $generate);

accepted('every directive', http => <<'END', server => <<'END');
    sd_device cpu;
    sd_threads 2;
    sd_slots 2;
    sd_queue 0 time=5m;
    sd_drain_timeout 10s;
    sd_zone counters 2m;
    sd_loading fail;
    sd_reload wait;
    sd_model %%MODEL%%;
    sd_precision exact;
    sd_priority low;
    sd_timeout 1m;
    sd_read_timeout 30s;
    sd_intercept_errors off;
    sd_preview vae;
    sd_latent last;
    sd_pagination on;
    sd_get on;
    sd_cors https://example.com;
    sd_max_steps 50;
    sd_max_pixels 65536;
    sd_max_images 2;
END
        sd_preview rgb;
        sd_priority high;
        sd_cors off;
        location = /a { sd_generate; sd_model %%MODEL%%/; sd_latent all; }
        location = /b { sd_generate native; sd_get off; sd_cors *; }
        location = /c { sd_generate sagemaker; sd_precision bf16; }
        location = /d { sd_generate; if ($args) { set $x 1; }
                        limit_except POST { deny all; } }
END


accepted("sd_device $_", http => "sd_model %%MODEL%%;\n sd_device $_;\n")
    for 'auto', 'cpu', 'cuda', 'cuda:0', 'cuda:7', 'cuda:0 cuda:1',
        'cuda:3 cuda cuda:11', 'cpu:0';

accepted("sd_$_", http => "sd_model %%MODEL%%;\n sd_$_;\n")
    for 'sizes 512x512', 'sizes 768x512 8x16384', 'cache_path sd_cache';


# directives

refused('a dialect that there is not', qr/unknown dialect "openai"/,
    server => "location / {\n sd_generate openai; # here\n }");

refused('no model', qr/"sd_generate" without "sd_model"/,
    http => '', server => "location / {\n sd_generate; # here\n }");

refused('two handlers', qr/"sd_status" directive is duplicate/,
    server => "location / {\n sd_generate;\n sd_status; # here\n }");

refused('a handler twice', qr/"sd_generate" directive is duplicate/,
    server => "location / {\n sd_generate;\n sd_generate; # here\n }");

refused('another module\'s handler', qr/"sd_generate" directive conflicts/,
    server => "location / {\n proxy_pass http://127.0.0.1;\n"
              . " sd_generate; # here\n }");

refused('only a status', qr/"sd_ready" without "sd_generate"/,
    http => '', server => '');

for ([ 'counters 100k', qr/zone "counters" is too small, it takes \d+k/ ],
     [ 'counters many', qr/invalid zone size "many"/ ],
     [ 'counters 0', qr/invalid zone size "0"/ ],
     [ '""', qr/"sd_zone" directive has an empty name/ ],
     [ "a;\n sd_zone b", qr/"sd_zone" directive is duplicate/ ])
{
    my ($value, $message) = @$_;

    refused("sd_zone $value", $message,
        http => "sd_model %%MODEL%%;\n sd_zone $value; # here\n");
}

refused('another module\'s zone', qr/zone "req" is already declared/,
    http => "limit_req_zone \$uri zone=req:2m rate=1r/s;\n"
            . " sd_model %%MODEL%%;\n sd_zone req 2m;\n");

refused('a model twice', qr/"sd_model" directive is duplicate/,
    http => "sd_model %%MODEL%%;\n sd_model %%MODEL%%; # here\n");

for ([ 'sd_threads', 0 ], [ 'sd_threads', 1025 ],
     [ 'sd_slots', 0 ], [ 'sd_slots', 65 ], [ 'sd_queue', 65536 ],
     [ 'sd_max_steps', 0 ], [ 'sd_max_steps', 1001 ],
     [ 'sd_max_pixels', 63 ], [ 'sd_max_images', 0 ],
     [ 'sd_max_images', 65 ])
{
    my ($name, $value) = @$_;

    refused("$name $value", qr/value must be (between|equal to or)/,
        http => "sd_model %%MODEL%%;\n $name $value; # here\n");
}

for ([ 'sd_threads', 'many' ], [ 'sd_queue', '-1' ], [ 'sd_slots', '' ],
     [ 'sd_max_pixels', '1.5' ])
{
    my ($name, $value) = @$_;

    refused("$name \"$value\"",
        qr/"$name" directive invalid number|invalid number/,
        http => "sd_model %%MODEL%%;\n $name \"$value\"; # here\n");
}

for ([ 'sd_device', 'tpu' ], [ 'sd_device', 'cuda:' ],
     [ 'sd_device', 'cuda:x' ], [ 'sd_device', 'cuda:01' ],
     [ 'sd_device', 'cuda:-1' ], [ 'sd_device', 'cuda:0 gpu' ],
     [ 'sd_sizes', '512' ],
     [ 'sd_sizes', '512x512 100x100' ], [ 'sd_sizes', '8x99999' ], [ 'sd_precision', 'int4' ],
     [ 'sd_preview', 'jpeg' ], [ 'sd_priority', 'urgent' ], [ 'sd_latent', 'some' ],
     [ 'sd_get', 'yes' ], [ 'sd_pagination', '2' ],
     [ 'sd_intercept_errors', 'no' ],
     [ 'sd_loading', 'maybe' ], [ 'sd_reload', 'on' ],
     [ 'sd_timeout', 'soon' ], [ 'sd_drain_timeout', '-1s' ])
{
    my ($name, $value) = @$_;

    refused("$name $value", qr/invalid value/,
        http => "sd_model %%MODEL%%;\n $name $value; # here\n");
}

for ([ 'cuda cuda:0', 'there already' ], [ 'cuda:1 cuda:1', 'there already' ],
     [ 'auto cuda', 'stands alone' ], [ 'cuda cpu', 'stands alone' ],
     map({ [ $_, 'invalid list of processors' ] }
         'cpu:', 'cpu:x', 'cpu:0-', 'cpu:1-0', 'cpu:0,', 'cpu:,0', 'cpu:0-0-0',
         'cpu:-1', 'cpu:1024', 'cpu:0 cpu:'),
     [ 'cpu:1023', 'there is no processor 1023, as this machine has \d+' ],
     [ 'cpu:0,0', 'processor 0 is there twice' ],
     [ 'cpu:' . ('0,' x 40) . '0', 'too long' ],
     [ 'cpu:0 cpu:0', 'has processors of another one' ],
     [ 'cpu:0 cuda', 'does not go with' ],
     [ 'cuda cpu:0', 'does not go with' ], [ 'cpu:0 cpu', 'stands alone|go with' ])
{
    my ($value, $message) = @$_;

    refused("sd_device $value", qr/"sd_device": .*$message/,
        http => "sd_model %%MODEL%%;\n sd_device $value; # here\n");
}

refused('sd_device twice', qr/"sd_device" directive is duplicate/,
    http => "sd_model %%MODEL%%;\n sd_device cpu;\n"
            . " sd_device auto; # here\n");

for (qw/ time= time=0 time=soon 5m /) {
    refused("sd_queue 64 $_",
        qr/invalid (?:parameter|value) "\Q$_\E" of "sd_queue"/,
        http => "sd_model %%MODEL%%;\n sd_queue 64 $_; # here\n");
}

refused('sd_read_timeout 0', qr/must be greater than zero/,
    http => "sd_model %%MODEL%%;\n sd_read_timeout 0; # here\n");

for ('example.com', 'https://', 'https://example.com/path', '://x') {
    refused("sd_cors $_", qr/invalid origin "\Q$_\E"/,
        http => "sd_model %%MODEL%%;\n sd_cors $_; # here\n");
}

for (qw/ sd_device sd_sizes sd_cache_path sd_threads sd_slots sd_queue
        sd_loading sd_reload sd_drain_timeout /) {
    refused("$_ in a server", qr/"$_" directive is not allowed here/,
        server => "$_ 1; # here\n $generate");
}

for (qw/ sd_generate sd_status sd_metrics sd_ready sd_live /) {
    refused("$_ in a server", qr/"$_" directive is not allowed here/,
        server => "$_; # here\n $generate");
}


# pictures need the time to be handed over before connections are cut

my $late = qr/"sd_drain_timeout" is not shorter than "worker_shutdown_timeout"/;

for ([ '', undef ], [ 'worker_shutdown_timeout 5m;', $late ],
     [ 'worker_shutdown_timeout 301s;', undef ])
{
    warned("the default, with \"$_->[0]\"", $_->[1], main => $_->[0]);
}

warned('10s of 10s', $late, main => 'worker_shutdown_timeout 10s;',
    http => "sd_model %%MODEL%%;\n sd_drain_timeout 10s;\n");
warned('no end, of 10s', $late, main => 'worker_shutdown_timeout 10s;',
    http => "sd_model %%MODEL%%;\n sd_drain_timeout 0;\n");
warned('8s of 10s', undef, main => 'worker_shutdown_timeout 10s;',
    http => "sd_model %%MODEL%%;\n sd_drain_timeout 8s;\n");


# where packed weights and plans are kept

warned('sd_cache_path', undef,
    http => "sd_model %%MODEL%%;\n sd_cache_path %%DIR%%/cache;\n");

SKIP: {
    skip 'needs root', 4 unless $> == 0;

    # the directory is made for the worker, who cannot reach it

    mkdir "$dir/closed", 0700;

    warned('a cache that the worker cannot reach',
        qr/"sd_cache_path".*cannot be written to by user "nobody".*denied/,
        main => 'user nobody nogroup;', http => "sd_cache_path "
            . "$dir/closed/cache;\n sd_model " . open_model() . ";\n");

    warned('and one that he can', undef,
        main => 'user nobody nogroup;', http => "sd_cache_path "
            . "$dir/cache;\n sd_model " . open_model() . ";\n");

    is_deeply([ glob "$dir/cache/* $dir/cache/.check*" ], [],
        'nothing is left there');
}


# models

# of files of its own: the worker need not reach the repository

sub open_model {
    our $open //= 0;

    my $model = SD::Checkpoint::copy($SD::MODEL, "$dir/open" . $open++);

    SD::Checkpoint::edit($_, sub { $_[0] })
        for grep { -l } <$model/* $model/*/*>;

    return $model;
}

sub broken {
    my ($name, $message, $break) = @_;
    our $n //= 0;

    my $model = SD::Checkpoint::copy($SD::MODEL, "$dir/model" . $n++);
    $break->($model);

    refused($name, $message,
        http => "sd_queue 1;\n sd_model $model; # here\n");
}

my $unet = 'unet/diffusion_pytorch_model.safetensors';
my $vae = 'vae/diffusion_pytorch_model.safetensors';
my $text = 'text_encoder/model.safetensors';

refused('no such model', qr{sd_model "/nowhere/at/all"},
    http => "sd_model /nowhere/at/all; # here\n");

for my $file ('unet/config.json', 'vae/config.json',
              'text_encoder/config.json', 'scheduler/scheduler_config.json',
              'tokenizer/merges.txt', $unet, $vae, $text)
{
    broken("no $file", qr/\Q@{[ $file =~ m{^(\w+)} ]}\E/,
           sub { unlink "$_[0]/$file" });
}

broken('a file cut short', qr/diffusion_pytorch_model\.safetensors/, sub {
    SD::Checkpoint::edit("$_[0]/$unet", sub { substr $_[0], 0, 1000000 });
});

broken('a header cut short', qr/model\.safetensors/, sub {
    SD::Checkpoint::edit("$_[0]/$text", sub { substr $_[0], 0, 100 });
});

broken('an empty file', qr/model\.safetensors/, sub {
    SD::Checkpoint::edit("$_[0]/$text", sub { '' });
});

broken('a tensor that is missing', qr/conv_in\.weight/, sub {
    SD::Checkpoint::edit_header("$_[0]/$unet", sub {
        $_[0] =~ s/"conv_in\.weight"/"conv_on.weight"/r;
    });
});

broken('a tensor of another shape', qr/decoder\.conv_out\.weight/, sub {
    SD::Checkpoint::edit_header("$_[0]/$vae", sub {
        $_[0] =~ s/("decoder\.conv_out\.weight":\{[^}]*"shape":)
                   \[(\d+),(\d+),/$1\[$3,$2,/xr;
    });
});

broken('a type that there is not', qr/decoder\.conv_out\.weight/, sub {
    SD::Checkpoint::edit_header("$_[0]/$vae", sub {
        $_[0] =~ s/("decoder\.conv_out\.weight":\{[^}]*)"F16"/$1"I64"/r;
    });
});

broken('bad JSON', qr{unet/config\.json}, sub {
    SD::Checkpoint::edit("$_[0]/unet/config.json", sub { "{ \"a\": \n" });
});

broken('a block that there is not', qr/AttnFreeBlock/, sub {
    SD::Checkpoint::edit("$_[0]/unet/config.json", sub {
        $_[0] =~ s/"CrossAttnDownBlock2D"/"AttnFreeBlock"/r;
    });
});

broken('a key that is not implemented', qr/class_embed_type/, sub {
    SD::Checkpoint::edit("$_[0]/unet/config.json", sub {
        $_[0] =~ s/\{/{ "class_embed_type": "timestep",/r;
    });
});

broken('a scheduler that there is not', qr/beta_schedule/, sub {
    SD::Checkpoint::edit("$_[0]/scheduler/scheduler_config.json", sub {
        $_[0] =~ s/"beta_schedule":\s*"\w+"/"beta_schedule": "sigmoid"/r;
    });
});


# root may read what a worker may not

SKIP: {
    skip 'needs root', 3 unless $> == 0;

    my $model = SD::Checkpoint::copy($SD::MODEL, "$dir/private");

    # files of its own: the worker need not reach the repository
    SD::Checkpoint::edit($_, sub { $_[0] }) for grep { -l } <$model/* $model/*/*>;
    chmod 0600, "$model/$unet";

    refused('a file that the worker may not read',
        qr/as user "nobody".*diffusion_pytorch_model\.safetensors/,
        main => 'user nobody nogroup;',
        http => "sd_queue 1;\n sd_model $model; # here\n");
}


# two gigabytes, and none of it is read

my $full = SD::Checkpoint::full_size("$dir/full");
my $t = SD->new(http => "sd_model $full;", server => $generate);
my $best = 9;

for (1 .. 5) {
    my ($rc, $out, $time) = $t->check();

    is($rc, 0, 'a model of full size') or diag $out;
    $best = $time if $time < $best;
}

SKIP: {
    skip 'a sanitizer\'s times tell nothing', 1 if $SD::SANITIZED;

    cmp_ok($best, '<', 0.1, sprintf 'checked in %.0f ms', $best * 1000);
}

done_testing();
