#!/usr/bin/perl

# HTTP/2, by curl.

use warnings;
use strict;

use FindBin;
use IPC::Open3;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

plan(skip_all => 'curl without HTTP/2')
    unless `curl --version 2>/dev/null` =~ /\bHTTP2\b/;

my $t = SD->new(http => <<'END', server => <<'END', servers => <<'END2');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
END
        location = /generate { sd_generate; }
END
    server {
        listen 127.0.0.1:%%PORT2%% http2;
        location = /generate { sd_generate; sd_get on; sd_cors *; }
    }
END2

$t->start();

my $url = 'http://127.0.0.1:' . $t->port('PORT2') . '/generate';
my @curl = qw/ curl -s -S --http2-prior-knowledge -m 120 /;
my @json = ('-H', 'Content-Type: application/json');
my %small = (prompt => 'a red house', width => 64, height => 64, steps => 3,
             seed => 7);


sub curl {
    my $pid = open3(my $in, my $out, undef, @curl, @_);

    binmode $out;
    local $/;
    my $data = <$out>;
    waitpid $pid, 0;

    return ($? >> 8, $data);
}


my $jpeg = $t->post('/generate', { %small })->body();

my ($rc, $out) = curl(@json, '-d', json_encode({ %small }), $url);
is($rc, 0, 'a picture');
same($out, $jpeg, 'the same as by HTTP/1.1');

($rc, $out) = curl('-i', '-H', 'Accept: multipart/mixed', @json,
                   '-d', json_encode({ %small }), $url);
is($rc, 0, 'a progressive one');
like($out, qr{^HTTP/2 200}, 'by HTTP/2');
like($out, qr{^content-type: multipart/mixed; boundary=}m, 'its type');
like($out, qr{^sd-seed: 7\r$}m, 'its seed');
like($out, qr{SD-Event: preview}, 'previews');
like($out, qr{SD-Event: final}, 'the final picture');
like($out, qr{--\r\n\z}, 'whole');

($rc, $out) = curl('-i', '-d', '{}', @json, $url);
like($out, qr{^HTTP/2 400}, 'an error');
like($out, qr{"param":"prompt"}, 'with its body');

($rc, $out) = curl('-i', '-X', 'OPTIONS', $url);
like($out, qr{^HTTP/2 204}, 'a preflight');

($rc, $out) = curl('-I', "$url?prompt=x");
like($out, qr{^HTTP/2 200}, 'HEAD');


# a body of many frames, longer than what nginx reads ahead

($rc, $out) = curl(@json, '-d', json_encode({ %small }) . ' ' x 100000, $url);
same($out, $jpeg, 'a long body');


# a stream that is reset

my $cancelled = $t->status()->{requests}{cancelled};

my $pid = open3(my $in, my $o, undef, @curl, '-N', @json,
    '-H', 'Accept: multipart/mixed',
    '-d', json_encode({ %small, steps => 1000, width => 256, height => 256 }),
    $url);

ok((wait_for { $t->status()->{running} == 1 } 30), 'a long one');
kill 'TERM', $pid;
waitpid $pid, 0;

ok((wait_for { $t->status()->{requests}{cancelled} == $cancelled + 1 } 10),
    'ends with its client');

$t->stop();

done_testing();
