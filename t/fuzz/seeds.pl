#!/usr/bin/perl

# What the fuzzers start from: seeds.pl DIR makes DIR/NAME.corpus/ for each.

use strict;
use warnings;

my $dir = shift or die "usage: $0 DIR\n";


sub seed {
    my ($name, @seeds) = @_;

    mkdir "$dir/$name.corpus";

    for my $i (0 .. $#seeds) {
        open my $f, '>:raw', "$dir/$name.corpus/seed$i" or die "$!\n";
        print $f $seeds[$i];
        close $f;
    }
}


sub safetensors {
    my ($header, $data) = @_;

    $header .= ' ' x (-length($header) % 8);

    return pack('Q<', length $header) . $header . $data;
}


sub state {
    my ($shape, $type, $data, $meta, $kept) = @_;

    my $n = length $data;
    my $tensor = '{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}';
    my $header = '{' . ($meta ? qq("__metadata__":{$meta},) : '')
        . '"latents":' . sprintf($tensor, $type, $shape, 0, $n);

    for (1 .. $kept // 0) {
        $header .= sprintf ',"kept_%d":' . $tensor, $_ - 1, $type, $shape,
            $n * $_, $n * ($_ + 1);
    }

    return safetensors("$header}", $data x (1 + ($kept // 0)));
}


my $digest = '0123456789abcdef' x 4;
my $meta = '"sd_version":"1","step":"3","steps":"20","seed":"42",'
    . qq("sampler":"ddim","model":"$digest","width":"16","height":"8",)
    . qq("prompt":"$digest","guidance":"7.5","numerics":"x");
my $f32 = pack 'f<*', map { $_ / 3 } 1 .. 8;

my @states = (
    state('1,4,1,2', 'F32', $f32, $meta),
    state('1,4,1,2', 'F32', $f32, $meta, 2),
    state('1,4,1,2', 'F32', $f32, ''),
    state('1,4,1,2', 'F16', substr($f32, 0, 16), ''),
    state('1,4,1,2', 'BF16', substr($f32, 0, 16), ''),
    state('1,4,1,2', 'F32', pack('f<*', 1, 2, 3, 'nan', 5 .. 8), ''),
    state('1,4,1,2', 'F32', $f32, '"sd_version":"2"'),
);

seed('state', @states);
seed('safetensors', @states,
    safetensors('{}', ''),
    safetensors('{"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
        . '"\u00e9\ud83d\ude00":{"dtype":"U8","shape":[2,2],'
        . '"data_offsets":[8,12]}}', 'x' x 12),
    safetensors('{"a":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}}', ''));

seed('base64', 'Zm9vYmFy', 'Zg==', " Z m8=\n", 'AAAA////++++', '=');

seed('tokenizer', 'a red house by the lake', "It's  12 CAF\xc3\x89 e\xcc\x81",
    "<|startoftext|>x<|EndOfText|>!!", "\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f"
    . "\x91\xa9", "\xe6\x9d\xb1\xe4\xba\xac", "\xc4\xb0\xce\xa3\xea\xb0\x80",
    "\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "a\xe3\x80\x80\x00b");

# the byte in front: see request.c

seed('request',
    "\x00" . '{"prompt":"a red house","negative_prompt":"x","width":64,'
    . '"height":64,"steps":20,"guidance_scale":7.5,"seed":1,"n":2,'
    . '"sampler":"euler","preview_every":5,"preview":"vae","latent":"last",'
    . '"format":"sse","quality":80,"foo":[{"a":null}]}',
    "\x18" . '{"prompt":"x","parameters":{"num_inference_steps":50,'
    . '"guidance_scale":9,"num_interim_images":5,"starting_step":0,'
    . '"latents":"Zm9vYmFy"}}',
    "\x07" . 'prompt=a%20red+house&steps=20&seed=-1{"prompt":"x","y":1}   ',
    "\x00" . 'text/event-stream;q=0.5, multipart/mixed; q=1, */*;q=0');

# sd_frame_request_t: see frame.c

my @strings = ('/generate', 'a=b', '*/*', 'application/json', '', '0' x 32);
my ($location) = slurp('src/engine/frame.h')
    =~ /typedef struct \{([^}]*)\} sd_location_t;/;
my $n = () = $location =~ /uint32_t/g;
my $fixed = "\x5a" x 32
    . pack("L$n", 0, 0, 60000, 100, 262144, 4, 1, (0) x ($n - 7))
    . pack('L', 1) . pack('L6', map { length } @strings) . pack('L2', 0, 0);

$fixed .= "\0" x (-length($fixed) % 8) . pack('Q', 10) . join '', @strings;

seed('frame', pack('LL', 0x31464453, 8 + length $fixed) . $fixed);

# how, leave, dialect and Accept, previews, changes: see socket.c

my $json = '{"prompt":"a","width":64,"height":64,"steps":4,"seed":1';

seed('socket', (map {
    my $accept = $_;
    map { pack('C5', $_, 100, 0x20 | $accept << 2, 1, 0) . "$json}" } 0 .. 3
} 0 .. 7),
    pack('C5', 0, 0, 0x21, 0x11, 0) . qq($json,"num_interim_images":2}),
    pack('C5', 4, 9, 0x30, 0x0e, 0) . qq($json,"n":4,"preview":"vae"}),
    pack('C5', 12, 99, 0x34, 0x21, 0) . qq($json,"latent":"all"}),
    pack('C5nCnC', 0, 0, 0x20, 0, 2, 0, 1, 44, 1) . "$json}",
    pack('C5', 0, 0, 0, 0, 0) . 'prompt=a+b&steps=2&format=sse');

# the byte in front: see config.c

my $model = 't/golden/models';
my @configs = qw( model_index.json scheduler/scheduler_config.json
    text_encoder/config.json unet/config.json vae/config.json );

seed('config', (map {
    my $which = $_;
    map { chr($which) . slurp("$_/$configs[$which]") }
        glob("$model/*"), 'model';
} 0 .. $#configs), "\x05" . slurp('model/latent_rgb.json'));

seed('index', '{"metadata":{"total_size":32},"weight_map":'
    . '{"a":"0.safetensors","b":"1.safetensors"}}',
    '{"weight_map":{"a":"1.safetensors"}}', '{"weight_map":{}}',
    '{"weight_map":{"a":"../0.safetensors","\u0000":3}}');


sub slurp {
    my ($path) = @_;

    open my $f, '<:raw', $path or die "$path: $!\n";
    local $/;
    return scalar <$f>;
}
