package SD::Checkpoint;

# Checkpoints for tests of what `nginx -t` says: one of SD 1.5's size whose
# weights are holes in sparse files, and copies of the embedded model with one
# thing wrong.

use warnings;
use strict;

use File::Path qw/ make_path /;
use JSON::PP ();

my $json = JSON::PP->new->canonical;


sub write_file {
    my ($path, $data) = @_;

    unlink $path;
    open my $f, '>:raw', $path or die "$path: $!";
    print $f $data;
    close $f or die "$path: $!";
}


sub read_file {
    my ($path) = @_;

    open my $f, '<:raw', $path or die "$path: $!";
    local $/;
    return scalar <$f>;
}


# tensors: [ name, dimensions ... ]; the weights are not written

sub write_safetensors {
    my ($path, @tensors) = @_;

    my ($offset, %header) = (0);

    for (@tensors) {
        my ($name, @shape) = @$_;
        my $size = 2;
        $size *= $_ for @shape;

        $header{$name} = { dtype => 'F16', shape => [ map { $_ + 0 } @shape ],
                           data_offsets => [ $offset, $offset + $size ] };
        $offset += $size;
    }

    my $text = $json->encode(\%header);
    $text .= ' ' x (-length($text) % 8);

    write_file($path, pack('Q<', length $text) . $text);
    truncate $path, 8 + length($text) + $offset or die "$path: $!";
}


sub linear { my ($n, $k, $c) = @_; ([ "$n.weight", $k, $c ], [ "$n.bias", $k ]) }
sub norm { my ($n, $k) = @_; ([ "$n.weight", $k ], [ "$n.bias", $k ]) }

sub conv {
    my ($n, $k, $c, $r) = @_;

    return ([ "$n.weight", $k, $c, $r, $r ], [ "$n.bias", $k ]);
}


sub resnet {
    my ($n, $in, $out, $temb) = @_;

    return (norm("$n.norm1", $in), conv("$n.conv1", $out, $in, 3),
            $temb ? linear("$n.time_emb_proj", $out, $temb) : (),
            norm("$n.norm2", $out), conv("$n.conv2", $out, $out, 3),
            $in != $out ? conv("$n.conv_shortcut", $out, $in, 1) : ());
}


sub transformer {
    my ($n, $c, $cross) = @_;

    my $b = "$n.transformer_blocks.0";
    my @t = (norm("$n.norm", $c), conv("$n.proj_in", $c, $c, 1));

    for ([ 'attn1', $c ], [ 'attn2', $cross ]) {
        my ($a, $width) = @$_;
        push @t, [ "$b.$a.to_q.weight", $c, $c ],
                 [ "$b.$a.to_k.weight", $c, $width ],
                 [ "$b.$a.to_v.weight", $c, $width ],
                 linear("$b.$a.to_out.0", $c, $c);
    }

    return (@t, (map { norm("$b.norm$_", $c) } 1 .. 3),
            linear("$b.ff.net.0.proj", 8 * $c, $c),
            linear("$b.ff.net.2", $c, 4 * $c),
            conv("$n.proj_out", $c, $c, 1));
}


sub unet {
    my @c = (320, 640, 1280, 1280);
    my ($temb, $cross) = (1280, 768);

    my @t = (conv('conv_in', 320, 4, 3),
             linear('time_embedding.linear_1', $temb, 320),
             linear('time_embedding.linear_2', $temb, $temb));

    my @skip = (320);
    my $x = 320;

    for my $i (0 .. 3) {
        my $n = "down_blocks.$i";

        for my $j (0 .. 1) {
            push @t, resnet("$n.resnets.$j", $x, $c[$i], $temb);
            $x = $c[$i];
            push @t, transformer("$n.attentions.$j", $x, $cross) if $i < 3;
            push @skip, $x;
        }

        if ($i < 3) {
            push @t, conv("$n.downsamplers.0.conv", $x, $x, 3);
            push @skip, $x;
        }
    }

    push @t, resnet('mid_block.resnets.0', $x, $x, $temb),
             transformer('mid_block.attentions.0', $x, $cross),
             resnet('mid_block.resnets.1', $x, $x, $temb);

    for my $i (0 .. 3) {
        my $n = "up_blocks.$i";
        my $out = $c[3 - $i];

        for my $j (0 .. 2) {
            push @t, resnet("$n.resnets.$j", $x + pop @skip, $out, $temb);
            $x = $out;
            push @t, transformer("$n.attentions.$j", $x, $cross) if $i > 0;
        }

        push @t, conv("$n.upsamplers.0.conv", $x, $x, 3) if $i < 3;
    }

    return (@t, norm('conv_norm_out', 320), conv('conv_out', 4, 320, 3));
}


sub vae {
    my $x = 512;

    my @t = (conv('post_quant_conv', 4, 4, 1),
             conv('decoder.conv_in', $x, 4, 3),
             resnet('decoder.mid_block.resnets.0', $x, $x),
             norm('decoder.mid_block.attentions.0.group_norm', $x),
             (map { linear("decoder.mid_block.attentions.0.$_", $x, $x) }
              qw/ to_q to_k to_v to_out.0 /),
             resnet('decoder.mid_block.resnets.1', $x, $x));

    for my $i (0 .. 3) {
        my $out = (512, 512, 256, 128)[$i];

        for my $j (0 .. 2) {
            push @t, resnet("decoder.up_blocks.$i.resnets.$j", $x, $out);
            $x = $out;
        }

        push @t, conv("decoder.up_blocks.$i.upsamplers.0.conv", $x, $x, 3)
            if $i < 3;
    }

    return (@t, norm('decoder.conv_norm_out', $x),
            conv('decoder.conv_out', 3, $x, 3));
}


sub text_encoder {
    my $c = 768;

    my @t = ([ 'text_model.embeddings.token_embedding.weight', 49408, $c ],
             [ 'text_model.embeddings.position_embedding.weight', 77, $c ]);

    for my $i (0 .. 11) {
        my $n = "text_model.encoder.layers.$i";

        push @t, norm("$n.layer_norm1", $c), norm("$n.layer_norm2", $c),
                 (map { linear("$n.self_attn.${_}_proj", $c, $c) }
                  qw/ q k v out /),
                 linear("$n.mlp.fc1", 4 * $c, $c),
                 linear("$n.mlp.fc2", $c, 4 * $c);
    }

    return (@t, norm('text_model.final_layer_norm', $c));
}


# a tokenizer of CLIP's size: merges of pairs of bytes, until there are enough

sub tokenizer {
    my ($dir) = @_;

    my @chars = map { chr } 0x21 .. 0x7e, 0xa1 .. 0xac, 0xae .. 0xff,
                            0x100 .. 0x143;
    my @tokens = (@chars, map { "$_</w>" } @chars);
    my @merges = ('#version: 0.2');

    PAIRS: for my $a (@chars) {
        for my $b (@chars) {
            last PAIRS if @tokens == 49406;
            push @merges, "$a $b";
            push @tokens, "$a$b";
        }
    }

    push @tokens, '<|startoftext|>', '<|endoftext|>';

    my $i = 0;
    my %vocab = map { $_ => $i++ } @tokens;

    my $merges = join("\n", @merges) . "\n";
    utf8::encode($merges);

    write_file("$dir/merges.txt", $merges);
    write_file("$dir/vocab.json", JSON::PP->new->utf8->encode(\%vocab));
    write_file("$dir/tokenizer_config.json", $json->encode(
        { tokenizer_class => 'CLIPTokenizer', model_max_length => 77,
          bos_token => '<|startoftext|>', eos_token => '<|endoftext|>',
          unk_token => '<|endoftext|>', pad_token => '<|endoftext|>' }));
}


# SD 1.5 as diffusers lays it out, 2 GB that take no room on the disk

sub full_size {
    my ($dir) = @_;

    make_path(map { "$dir/$_" } qw/ unet vae text_encoder tokenizer
                                    scheduler /);

    write_file("$dir/model_index.json", $json->encode({
        _class_name => 'StableDiffusionPipeline',
        scheduler => [ 'diffusers', 'PNDMScheduler' ],
        text_encoder => [ 'transformers', 'CLIPTextModel' ],
        tokenizer => [ 'transformers', 'CLIPTokenizer' ],
        unet => [ 'diffusers', 'UNet2DConditionModel' ],
        vae => [ 'diffusers', 'AutoencoderKL' ] }));

    write_file("$dir/scheduler/scheduler_config.json", $json->encode({
        _class_name => 'DDIMScheduler', beta_end => 0.012,
        beta_schedule => 'scaled_linear', beta_start => 0.00085,
        num_train_timesteps => 1000, set_alpha_to_one => JSON::PP::false,
        clip_sample => JSON::PP::false, steps_offset => 1 }));

    write_file("$dir/unet/config.json", $json->encode({
        _class_name => 'UNet2DConditionModel', act_fn => 'silu',
        attention_head_dim => 8, block_out_channels => [ 320, 640, 1280, 1280 ],
        center_input_sample => JSON::PP::false, cross_attention_dim => 768,
        down_block_types => [ ('CrossAttnDownBlock2D') x 3, 'DownBlock2D' ],
        downsample_padding => 1, flip_sin_to_cos => JSON::PP::true,
        freq_shift => 0, in_channels => 4, layers_per_block => 2,
        mid_block_scale_factor => 1, norm_eps => 1e-05, norm_num_groups => 32,
        out_channels => 4, sample_size => 64,
        up_block_types => [ 'UpBlock2D', ('CrossAttnUpBlock2D') x 3 ] }));

    write_file("$dir/vae/config.json", $json->encode({
        _class_name => 'AutoencoderKL', act_fn => 'silu',
        block_out_channels => [ 128, 256, 512, 512 ],
        down_block_types => [ ('DownEncoderBlock2D') x 4 ],
        in_channels => 3, latent_channels => 4, layers_per_block => 2,
        norm_num_groups => 32, out_channels => 3, sample_size => 512,
        scaling_factor => 0.18215,
        up_block_types => [ ('UpDecoderBlock2D') x 4 ] }));

    write_file("$dir/text_encoder/config.json", $json->encode({
        architectures => [ 'CLIPTextModel' ], hidden_act => 'quick_gelu',
        hidden_size => 768, intermediate_size => 3072, layer_norm_eps => 1e-05,
        max_position_embeddings => 77, model_type => 'clip_text_model',
        num_attention_heads => 12, num_hidden_layers => 12,
        projection_dim => 768, vocab_size => 49408, bos_token_id => 0,
        eos_token_id => 2, pad_token_id => 1 }));

    tokenizer("$dir/tokenizer");

    write_safetensors("$dir/unet/diffusion_pytorch_model.safetensors", unet());
    write_safetensors("$dir/vae/diffusion_pytorch_model.safetensors", vae());
    write_safetensors("$dir/text_encoder/model.safetensors", text_encoder());

    return $dir;
}


# the model at $from, by links, so that single files can be replaced

sub copy {
    my ($from, $dir) = @_;

    for (glob "$from/*.json $from/*/*.json $from/*/*.txt "
              . "$from/*/*.safetensors")
    {
        next unless m{^\Q$from\E/((?:(\w+)/)?[^/]+)$};
        make_path(defined $2 ? "$dir/$2" : $dir);
        symlink $_, "$dir/$1" or die "$dir/$1: $!";
    }

    return $dir;
}


# replaces a file of a copy by what a function makes of its bytes

sub edit {
    my ($path, $change) = @_;

    write_file($path, $change->(read_file($path)));
}


# the embedded model, of whose pictures a sanitizer paints sixteen in the time
# of one: they are of 64x64, where no size is given

sub small {
    my ($dir) = @_;

    copy($SD::MODEL, $dir);
    edit("$dir/unet/config.json",
         sub { $_[0] =~ s/("sample_size": )32/${1}8/r });

    return $dir;
}


# the same for a safetensors file's header, which may not become longer

sub edit_header {
    my ($path, $change) = @_;

    edit($path, sub {
        my ($data) = @_;
        my $n = unpack 'Q<', $data;
        my $header = $change->(substr $data, 8, $n);

        length $header <= $n or die "the header has grown\n";
        substr $data, 8, $n, $header . ' ' x ($n - length $header);

        return $data;
    });
}


1;
