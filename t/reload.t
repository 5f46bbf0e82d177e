#!/usr/bin/perl

# A reload loses nothing: pictures that run are finished by the old worker,
# new ones begin in the new; and a reload with an error changes nothing.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my %conf = (main => 'worker_processes 2;', http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    sd_drain_timeout 60s;
END
        location = /generate { sd_generate; }
END

my $t = SD->new(%conf);
$t->start();

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 60,
             seed => 7);
my $mixed = 'multipart/mixed';

my $alone = $t->post('/generate', { %small })->body();
is(picture_size($alone), 'jpeg 64x64', 'a picture');

my $pid = $t->status()->{pid};


# until another engine answers

sub replaced {
    my ($name) = @_;

    ok((wait_for {
            my $s = eval { $t->status() };
            $s && $s->{pid} != $pid && ($pid = $s->{pid});
        } 30), "$name: a new engine");
}


sub gone {
    my ($name, @old) = @_;

    ok((wait_for {
            my %now = map { $_ => 1 } $t->workers();
            !grep { $now{$_} } @old;
        } 30), "$name: the old workers are gone");
}


# a reload, and the next one, while pictures run

for my $n ('a reload', 'the next') {
    my @old = $t->workers();
    my @r = map { $t->post('/generate', { %small }, Accept => $mixed) } 1 .. 4;

    ok($_->part(), "$n: a stream has begun") for @r;

    $t->signal('HUP');
    replaced($n);

    # begun by the new one, while the old one works on

    my $new = $t->post('/generate', { %small });
    same($new->body(), $alone, "$n: the same picture from the new one");

    for (@r) {
        my @parts = $_->parts();
        is($parts[-1]{event}, 'final', "$n: the last part");
        same($parts[-1]{body}, $alone, "$n: the same picture");
        ok($_->complete(), "$n: whole");
    }

    gone($n, @old);
}


# a request that an old worker had accepted, but not read, before the reload

my $half = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                 PeerPort => $t->port()) or die "$!";
my $body = json_encode({ %small });

print $half "POST /generate HTTP/1.1\r\nHost: localhost\r\n"
            . "Connection: close\r\nContent-Type: application/json\r\n"
            . 'Content-Length: ' . length($body) . "\r\n\r\n"
            . substr($body, 0, 10);
$half->flush();

# each worker takes what is there in order: after these, it has been accepted

$t->get('/ping')->body() for 1 .. 8;

$t->signal('HUP');
replaced('half a request');

print $half substr $body, 10;
$half->flush();

my $answer = '';
while (sysread $half, my $data, 65536) {
    $answer .= $data;
}

like($answer, qr{^HTTP/1.1 200 }, 'half a request: is answered');
same(substr($answer, -length $alone), $alone, 'half a request: with a picture');


# a reload with an error in the configuration

my @workers = $t->workers();

$t->configure(%conf, http => "sd_model /nowhere;\n");
$t->signal('HUP');

ok((wait_for { $t->log() =~ m{\[emerg\].*"/nowhere"} } 10),
    'an error in the new configuration');
same($t->post('/generate', { %small })->body(), $alone,
    'the old one goes on');
is($t->status()->{pid}, $pid, 'with its engine');


# sd_drain_timeout: what does not end in time is handed back

$t->configure(%conf, http => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    sd_drain_timeout 200ms;
END

$t->signal('HUP');
replaced('a drain timeout');

my %long = (%small, steps => 1000, width => 256, height => 256);
my $r = $t->post('/generate', { %long }, Accept => $mixed);

my $p;
while ($p = $r->part()) {
    last if $p->{event} eq 'preview';
}

@workers = $t->workers();
$t->signal('HUP');

my @parts = $r->parts();
my ($latent) = grep { $_->{event} eq 'latent' } reverse @parts;

is($parts[-1]{event}, 'handoff', 'a drain timeout: no time to finish');
ok($r->closed(), 'a drain timeout: but an orderly end');
ok($latent, 'a drain timeout: with the state');

my $metadata = json_decode(substr $latent->{body}, 8,
                           unpack 'Q<', $latent->{body})->{__metadata__};

cmp_ok($metadata->{step}, '>=', $p->{step}, 'of the step it had come to');
cmp_ok($metadata->{step}, '<', 1000, 'which is not the last');

gone('a drain timeout', @workers);

$t->stop(except => qr{"/nowhere"});

done_testing();
