#!/usr/bin/perl

# Whoever leaves ends what was done for him within a step, however he leaves:
# by closing the connection, by resetting it, by resetting a stream of HTTP/2.

use warnings;
use strict;

use FindBin;
use IO::Socket::INET;
use Socket;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $t = SD->new(http => <<'END', server => <<'END', servers => <<'END2');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    sd_slots 1;
END
        location = /generate { sd_generate; }
END
    server {
        listen 127.0.0.1:%%PORT2%% http2;
        location = /generate { sd_generate; }
    }
END2

$t->start();

my %small = (prompt => 'a red house', width => 64, height => 64, seed => 7,
             steps => 1);
my %long = (prompt => 'a hill', width => 128, height => 128, steps => 1000,
            seed => 7, preview => 'none', latent => 'none');


# HTTP/2, as much as it takes: a request by literal headers, and a reset

sub frame {
    my ($type, $flags, $stream, $payload) = @_;

    return substr(pack('N', length $payload), 1)
           . pack('CCN', $type, $flags, $stream) . $payload;
}

sub http2 {
    my ($body) = @_;

    my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
        PeerPort => $t->port('PORT2'), Proto => 'tcp') or die "connect: $!\n";

    my @headers = (':method' => 'POST', ':scheme' => 'http',
                   ':authority' => 'localhost', ':path' => '/generate',
                   'content-type' => 'application/json',
                   'accept' => 'multipart/mixed',
                   'content-length' => length $body);

    my $block = '';

    while (my ($name, $value) = splice @headers, 0, 2) {
        $block .= pack 'CC/aC/a', 0, $name, $value;
    }

    syswrite $s, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" . frame(4, 0, 0, '')
                 . frame(1, 4, 1, $block) . frame(0, 1, 1, $body);

    return $s;
}


my %ways = (
    FIN => [ sub { $t->post('/generate', $_[0], Accept => 'multipart/mixed') },
             sub { $_[0]->close() } ],

    RST => [ sub { $t->post('/generate', $_[0], Accept => 'multipart/mixed') },
             sub {
                 setsockopt $_[0]{sock}, SOL_SOCKET, SO_LINGER,
                            pack('ii', 1, 0) or die "SO_LINGER: $!\n";
                 $_[0]->close();
             } ],

    # the connection stays, as a browser's does
    RST_STREAM => [ sub { http2(json_encode($_[0])) },
                    sub { syswrite $_[0], frame(3, 0, 1, pack('N', 8)) } ],
);

for my $way (sort keys %ways) {
    my ($ask, $leave) = @{$ways{$way}};

    # in the middle of a picture, while another one waits

    my $before = $t->status();

    my $r = $ask->({ %long });
    ok((wait_for { $t->status()->{steps} > $before->{steps} + 2 } 60),
        "$way: a picture is being made");

    my $w = $ask->({ %long });
    ok((wait_for { $t->status()->{queue}{waiting} == 1 } 60),
        "$way: another one waits");

    my $running = $t->status();

    $leave->($w);
    ok((wait_for { $t->status()->{queue}{waiting} == 0 } 60),
        "$way: who waits leaves the queue");
    is($t->status()->{running}, 1, "$way: who runs does not notice");

    $leave->($r);
    ok((wait_for { $t->status()->{running} == 0 } 60),
        "$way: who runs ends");

    my $after = $t->status();

    is($after->{requests}{cancelled}, $before->{requests}{cancelled} + 2,
        "$way: both as cancelled");

    my $steps = $after->{steps} - $before->{steps};

    cmp_ok($steps, '<', 1000, "$way: early");
    is($after->{wasted_steps} - $before->{wasted_steps}, $steps,
        "$way: its steps are wasted, and counted, all $steps");

    # not a step more, when the device has come to something else

    is($t->post('/generate', { %small })->status(), 200, "$way: the next one");
    is($t->status()->{steps}, $after->{steps} + 1, "$way: no step after that");
}

$t->stop();

done_testing();
