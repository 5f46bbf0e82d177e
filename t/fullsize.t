#!/usr/bin/perl

# A full-size model is checked in less than 100 ms, by "sd check" as by
# "nginx -t", and what is wrong with it is named.  The models are those of the
# published Stable Diffusion 1.5 and 2.1: all tensors, all configurations, but
# no weight: the files are sparse.

use strict;
use warnings;
use utf8;

use File::Path qw(make_path);
use File::Temp qw(tempdir);
use FindBin;
use JSON::PP;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $here = $FindBin::Bin;
my $limit = 0.1;

my %size = (F16 => 2, F32 => 4, I64 => 8);
my $json = JSON::PP->new->canonical;
my $dir = tempdir(CLEANUP => 1);
my $t = SD->new();

my %models = (
    sd15 => {
        parameters => { unet => 859_520_964, text_encoder => 123_060_480 },
        unet => {
            attention_head_dim => 8,
            cross_attention_dim => 768,
        },
        text_encoder => {
            hidden_act => 'quick_gelu',
            hidden_size => 768,
            intermediate_size => 3072,
            num_attention_heads => 12,
            num_hidden_layers => 12,
        },
        scheduler => {
            _class_name => 'PNDMScheduler',
        },
    },
    sd21 => {
        parameters => { unet => 865_910_724, text_encoder => 340_387_840 },
        unet => {
            attention_head_dim => [5, 10, 20, 20],
            cross_attention_dim => 1024,
            use_linear_projection => JSON::PP::true,
        },
        text_encoder => {
            hidden_act => 'gelu',
            hidden_size => 1024,
            intermediate_size => 4096,
            num_attention_heads => 16,
            num_hidden_layers => 23,
        },
        scheduler => {
            _class_name => 'DDIMScheduler',
            prediction_type => 'epsilon',
        },
    },
);


for my $name (sort keys %models) {
    my $model = $models{$name};
    my $lists = read_lists("$here/fullsize/$name.txt");

    for my $part (sort keys %{$model->{parameters}}) {
        my ($file) = grep { m{^$part/} } keys %$lists;
        my $count = 0;

        $count += product(@{$_->{shape}})
            for grep { $_->{type} ne 'I64' } values %{$lists->{$file}};
        is($count, $model->{parameters}{$part}, "$name: size of $part");
    }

    write_model("$dir/$name", $model, $lists);
}


for my $name (sort keys %models) {
    for (['sd check', \&check], ['nginx -t', \&nginx_test]) {
        my ($what, $run) = @$_;
        my ($out, $status) = $run->("$dir/$name");

        is($status, 0, "$what: $name") or diag($out);

        SKIP: {
            skip 'a sanitizer takes its time', 1 if $SD::SANITIZED ne '';

            my $took = best_of(3, sub { $run->("$dir/$name") });
            cmp_ok($took, '<', $limit,
                   sprintf('%s: %s in %.0f ms', $what, $name, $took * 1000));
        }
    }
}


# what is wrong is named

my $unet = 'unet/diffusion_pytorch_model';
my $tensor = 'up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k.weight';

for (
    ['a tensor is missing',
     sub { my $t = $_[0]->{$unet}; delete $t->{$tensor} },
     qr/\Q$tensor\E/],
    ['a tensor has another shape',
     sub { $_[0]->{$unet}{$tensor}{shape} = [1280, 1024] },
     qr/\Q$tensor\E.*1024/],
    ['a tensor has an axis too many',
     sub { $_[0]->{$unet}{$tensor}{shape} = [1280, 768, 2] },
     qr/\Q$tensor\E/],
    ['a tensor of the decoder is missing',
     sub {
         my $t = $_[0]->{'vae/diffusion_pytorch_model'};
         delete $t->{'decoder.conv_out.bias'}
     },
     qr/decoder\.conv_out\.bias/],
    ['a tensor of the text encoder has another shape',
     sub {
         my $t = $_[0]->{'text_encoder/model'};
         $t->{'text_model.final_layer_norm.weight'}{shape} = [769]
     },
     qr/text_model\.final_layer_norm\.weight.*769/],
    )
{
    my ($what, $damage, $expected) = @$_;
    my $lists = read_lists("$here/fullsize/sd15.txt");

    $damage->($lists);
    write_model("$dir/damaged", $models{sd15}, $lists);
    is_refused($what, $expected);
}

write_model("$dir/damaged", $models{sd15},
            read_lists("$here/fullsize/sd15.txt"));
my $path = "$dir/damaged/$unet.safetensors";
truncate($path, (-s $path) - 1) or die "$path: $!";
is_refused('a file is cut', qr/\Q$unet.safetensors\E/);

unlink($path);
is_refused('a file is missing', qr/diffusion_pytorch_model/);

write_model("$dir/damaged", $models{sd21},
            read_lists("$here/fullsize/sd15.txt"));
is_refused('a configuration of another model',
           qr/shape|1024|weight/);

$t->stop(except => qr/\[emerg\]/);

done_testing();


sub is_refused {
    my ($what, $expected) = @_;

    my ($out, $status) = check("$dir/damaged");
    isnt($status, 0, "$what: sd check fails");
    like($out, $expected, "$what: sd check says so");

    ($out, $status) = nginx_test("$dir/damaged");
    isnt($status, 0, "$what: nginx -t fails");
    like($out, $expected, "$what: nginx -t says so");
    like($out, qr{\[emerg\].* in \S+/nginx\.conf:\d+}, "$what: and where");
}


sub check {
    my ($model) = @_;

    my $out = `'$SD::BUILD/sd' check '$model' 2>&1`;
    return ($out, $?);
}


sub nginx_test {
    my ($model) = @_;

    $t->configure(http => "    sd_model $model;\n", server => <<'END');
        location = /generate { sd_generate; }
END
    my ($status, $out) = $t->nginx('-t');

    return ($out, $status);
}


# seconds of the processor, which a busy machine does not lengthen

sub best_of {
    my ($n, $run) = @_;
    my $best = 1e9;

    for (1 .. $n) {
        my $start = children();
        $run->();
        my $took = children() - $start;
        $best = $took if $took < $best;
    }

    return $best;
}


sub children {
    my (undef, undef, $user, $system) = times;

    return $user + $system;
}


sub write_model {
    my ($model_dir, $model, $lists) = @_;

    make_path(map { "$model_dir/$_" }
              qw(text_encoder unet vae scheduler tokenizer));
    write_safetensors("$model_dir/$_.safetensors", $lists->{$_})
        for keys %$lists;

    write_json("$model_dir/model_index.json", {
        _class_name => 'StableDiffusionPipeline',
        _diffusers_version => '0.6.0',
        scheduler => ['diffusers', $model->{scheduler}{_class_name}],
        text_encoder => ['transformers', 'CLIPTextModel'],
        tokenizer => ['transformers', 'CLIPTokenizer'],
        unet => ['diffusers', 'UNet2DConditionModel'],
        vae => ['diffusers', 'AutoencoderKL'],
    });

    write_json("$model_dir/unet/config.json", {
        _class_name => 'UNet2DConditionModel',
        act_fn => 'silu',
        block_out_channels => [320, 640, 1280, 1280],
        center_input_sample => JSON::PP::false,
        down_block_types => [('CrossAttnDownBlock2D') x 3, 'DownBlock2D'],
        downsample_padding => 1,
        flip_sin_to_cos => JSON::PP::true,
        freq_shift => 0,
        in_channels => 4,
        layers_per_block => 2,
        mid_block_scale_factor => 1,
        norm_eps => 1e-05,
        norm_num_groups => 32,
        out_channels => 4,
        sample_size => 64,
        up_block_types => ['UpBlock2D', ('CrossAttnUpBlock2D') x 3],
        %{$model->{unet}},
    });

    write_json("$model_dir/vae/config.json", {
        _class_name => 'AutoencoderKL',
        act_fn => 'silu',
        block_out_channels => [128, 256, 512, 512],
        down_block_types => [('DownEncoderBlock2D') x 4],
        in_channels => 3,
        latent_channels => 4,
        layers_per_block => 2,
        norm_num_groups => 32,
        out_channels => 3,
        sample_size => 512,
        up_block_types => [('UpDecoderBlock2D') x 4],
    });

    write_json("$model_dir/text_encoder/config.json", {
        architectures => ['CLIPTextModel'],
        attention_dropout => 0.0,
        bos_token_id => 0,
        eos_token_id => 2,
        layer_norm_eps => 1e-05,
        max_position_embeddings => 77,
        model_type => 'clip_text_model',
        pad_token_id => 1,
        vocab_size => 49408,
        %{$model->{text_encoder}},
    });

    write_json("$model_dir/scheduler/scheduler_config.json", {
        beta_end => 0.012,
        beta_schedule => 'scaled_linear',
        beta_start => 0.00085,
        clip_sample => JSON::PP::false,
        num_train_timesteps => 1000,
        set_alpha_to_one => JSON::PP::false,
        skip_prk_steps => JSON::PP::true,
        steps_offset => 1,
        trained_betas => undef,
        %{$model->{scheduler}},
    });

    write_tokenizer("$model_dir/tokenizer");
}


# as many tokens as CLIP has, made up: every string of letters, shortest first

sub write_tokenizer {
    my ($tokenizer_dir) = @_;
    my @own = (33 .. 126, 161 .. 172, 174 .. 255);
    my @bytes = map { chr } @own, 256 .. 511 - @own;
    my @vocab = (@bytes, map { "$_</w>" } @bytes);
    my @words = ('a' .. 'z');
    my $merges = "#version: 0.2\n";

    MERGE:
    for (my $i = 0; ; $i++) {
        for my $letter ('a' .. 'z') {
            for my $end ('', '</w>') {
                last MERGE if @vocab == 49406;
                $merges .= "$words[$i] $letter$end\n";
                push @vocab, "$words[$i]$letter$end";
            }
            push @words, "$words[$i]$letter";
        }
    }

    push @vocab, '<|startoftext|>', '<|endoftext|>';
    my $id = 0;
    write_json("$tokenizer_dir/vocab.json", { map { $_ => $id++ } @vocab });
    write_file("$tokenizer_dir/merges.txt", $merges);
}


# { path => { name => { type, shape } } }; see fullsize/list.py for the format

sub read_lists {
    my ($list) = @_;
    my (%lists, @tree, @above);

    open my $fh, '<', $list or die "$list: $!";

    while (<$fh>) {
        my ($indent, $label, $rest) = /^( *)(\S+) ?(.*)$/;
        my $node = { label => $label, rest => $rest, below => [] };
        my $depth = length $indent;

        push @{$depth ? $above[$depth - 1]{below} : \@tree}, $node;
        $above[$depth] = $node;
    }

    for my $file (@tree) {
        my $tensors = $lists{$file->{label}} = {};

        expand($tensors, $file->{rest}, '', $_) for @{$file->{below}};
    }

    return \%lists;
}


sub expand {
    my ($tensors, $type, $prefix, $node) = @_;
    my ($from, $to) = $node->{label} =~ /^(\d+)-(\d+)$/;

    for my $label (defined $from ? $from .. $to : $node->{label}) {
        if (@{$node->{below}}) {
            expand($tensors, $type, "$prefix$label.", $_)
                for @{$node->{below}};
            next;
        }

        my @shape = split / /, $node->{rest};
        my $own = $shape[0] =~ /^\d/ ? $type : shift @shape;

        $tensors->{"$prefix$label"} = { type => $own, shape => \@shape };
    }
}


# the header, then nothing but a hole

sub write_safetensors {
    my ($file, $tensors) = @_;
    my (%header, $end);

    $end = 0;

    for my $name (sort keys %$tensors) {
        my $t = $tensors->{$name};
        my $begin = $end;

        $end += $size{$t->{type}} * product(@{$t->{shape}});
        $header{$name} = {
            dtype => $t->{type},
            shape => [map { $_ + 0 } @{$t->{shape}}],
            data_offsets => [$begin, $end],
        };
    }

    my $text = $json->encode(\%header);
    $text .= ' ' x (-length($text) % 8);
    write_file($file, pack('Q<', length $text) . $text);
    truncate($file, 8 + length($text) + $end) or die "$file: $!";
}


sub write_json {
    my ($file, $value) = @_;

    write_file($file, $json->encode($value));
}


# a file of the same name that the last model left is another file

sub write_file {
    my ($file, $text) = @_;

    utf8::encode($text) if $file !~ /\.safetensors$/;
    unlink($file);
    open my $fh, '>:raw', $file or die "$file: $!";
    print $fh $text;
    close $fh or die "$file: $!";
}


sub product {
    my $product = 1;

    $product *= $_ for @_;
    return $product;
}
