package SD::Weather;

# Clients as they come: slow, stalled, cut, lost, hostile.  Each kind is a
# method that does it to a server and says what was not as promised, or nothing:
# what is promised stands above it.  t/faults.t has each once, t/soak.pl all of
# them again and again.
#
#     my $w = SD::Weather->new($t);     # $t is SD->new(SD::Weather::conf())
#     is($w->$_(), '', $_) for @SD::Weather::KINDS;
#
# amount => n: how much of it; seed => n: of what is random; others => 1: it is
# not alone, so that the engine's counters and its peace are not its own.

use warnings;
use strict;

use IO::Select;
use IO::Socket::INET;
use Socket qw/ SOL_SOCKET SO_LINGER SO_RCVBUF IPPROTO_TCP TCP_NODELAY SHUT_WR
               inet_aton pack_sockaddr_in /;
use Time::HiRes qw/ time /;

use SD;

our @KINDS = qw/ slow_reader stalled_reader half_closed reset_request
                 reset_response single_bytes slow_writer idle_connections
                 garbage truncated_body http10 pipelining huge_header
                 accept_storm /;

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 2,
             seed => 7);
my $mixed = 'multipart/mixed';


# %%PORT%% is patient, %%PORT1%% is not and has small buffers

sub conf {
    my (%o) = @_;

    return (main => "worker_processes 2;\nworker_rlimit_nofile 8192;\n"
                    . ($o{main} // ''), events => 'worker_connections 2048;',
            http => <<'END', server => <<'END', servers => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    sd_queue 1024;
    sd_drain_timeout 60s;
    client_max_body_size 1m;
    client_body_buffer_size 4k;
END
        location = /generate { sd_generate; sd_get on; }
END
    server {
        listen 127.0.0.1:%%PORT1%% sndbuf=4k rcvbuf=4k;
        client_header_timeout 1s;
        client_body_timeout 1s;
        send_timeout 1s;
        reset_timedout_connection on;
        location = /generate { sd_generate; }
    }
END
}


sub new {
    my ($class, $t, %o) = @_;

    my $self = bless { t => $t, amount => 1, seed => 1, cursor => 0, %o },
                     $class;

    $self->{want} = $t->post('/generate', { %small })->body();
    picture_size($self->{want}) eq 'jpeg 64x64' or die "no picture\n";

    return $self;
}


# the steps that all are made of

sub port {
    my ($self, $name) = @_;

    return $self->{t}->port($name // 'PORT');
}


sub dial {
    my ($self, %o) = @_;

    local $SIG{PIPE} = 'IGNORE';

    socket my $s, Socket::PF_INET(), Socket::SOCK_STREAM(), IPPROTO_TCP
        or die "socket: $!\n";
    setsockopt $s, SOL_SOCKET, SO_RCVBUF, $o{rcvbuf} if $o{rcvbuf};
    setsockopt $s, IPPROTO_TCP, TCP_NODELAY, 1;

    connect $s, pack_sockaddr_in($self->port($o{port}), inet_aton('127.0.0.1'))
        or die "connect: $!\n";

    $self->put($s, $o{send}) if defined $o{send};

    return $s;
}


# as much as there is to send, or as the other side takes

sub put {
    my ($self, $s, $data) = @_;

    local $SIG{PIPE} = 'IGNORE';

    while (length $data) {
        my $n = syswrite $s, $data;
        return 0 unless defined $n;
        substr $data, 0, $n, '';
    }

    return 1;
}


# up to so many bytes, or all until the end

sub take {
    my ($self, $s, $n, $seconds) = @_;

    my $data = '';
    my $end = time() + ($seconds // 60);
    my $select = IO::Select->new($s);

    while (!defined $n || length $data < $n) {
        $select->can_read($end - time()) or return $data . ' (no more)';

        my $got = sysread $s, $data,
                  defined $n ? $n - length $data : 65536, length $data;
        last unless $got;
    }

    return $data;
}


sub reset {
    my ($self, $s) = @_;

    setsockopt $s, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0);
    close $s;
}


sub message {
    my ($self, %o) = @_;

    my $body = $o{body} // json_encode({ %small, %{$o{fields} // {}} });
    my $version = $o{version} // '1.1';
    my $accept = $o{accept} // 'image/jpeg';
    my $length = $o{length} // length $body;

    return "POST /generate HTTP/$version\r\nHost: localhost\r\n"
           . "Accept: $accept\r\nContent-Type: application/json\r\n"
           . ($o{keep} ? '' : "Connection: close\r\n") . ($o{headers} // '')
           . "Content-Length: $length\r\n\r\n$body";
}


# the first response in these bytes: status, body, and what follows it

sub answer {
    my ($self, $data) = @_;

    $data =~ s{^HTTP/1\.1 (\d+)(.*?)\r\n\r\n}{}s
        or return { status => 0, body => '', rest => $data, head => '' };

    my %a = (status => $1, head => $2);

    if ($a{head} =~ /^transfer-encoding: chunked\r?$/mi) {
        $a{body} = '';

        while ($data =~ s/^([0-9a-f]+)\r\n//i) {
            my $n = hex $1;
            $a{body} .= substr $data, 0, $n, '';
            $a{whole} = 1 if $n == 0 && $data =~ s/^\r\n//;
            last if $n == 0;
            $data =~ s/^\r\n// or last;
        }

    } elsif ($a{head} =~ /^content-length: (\d+)\r?$/mi) {
        $a{whole} = length $data >= $1;
        $a{body} = substr $data, 0, $1, '';

    } else {
        $a{body} = $data;
        $data = '';
    }

    $a{rest} = $data;

    return \%a;
}


# what is wrong with a response that should be the picture, or with the last
# part of one that should end with it

sub wrong {
    my ($self, $data, $what) = @_;

    my $a = $self->answer($data);

    return "$what: status $a->{status}, " . substr($data, -60)
        if $a->{status} != 200;

    return "$what: cut" if exists $a->{whole} && !$a->{whole};

    my $body = $a->{body};

    if ($a->{head} =~ /^content-type: multipart.*boundary=(\S+)\r?$/mi) {
        return "$what: no closing boundary" unless $body =~ s/\r\n--$1--\r\n$//;
        $body = substr $body, -length $self->{want};
    }

    return $body eq $self->{want} ? '' : "$what: another picture";
}


sub picture {
    my ($self, $what) = @_;

    return $self->wrong($self->take($self->dial(send => $self->message())),
                        $what // 'a picture');
}


# the engine is rid of everything

sub quiet {
    my ($self, $seconds) = @_;

    my $s;

    return '' if $self->{others};

    # its own question is a connection, too

    return '' if wait_for {
        $s = eval { $self->{t}->status() } or return 0;
        $s->{running} == 0 && $s->{queue}{waiting} == 0
        && $s->{connections} <= 1;
    } $seconds // 30;

    return 'still busy: ' . json_encode($s);
}


# the first complaint

sub first_of {
    for (@_) {
        return $_ if $_ ne '';
    }

    return '';
}


# A few bytes at a time: all that may not be dropped comes, and the picture is
# the same.

sub slow_reader {
    my ($self) = @_;

    my @s = map { $self->dial(rcvbuf => 4096, port => 'PORT1',
                              send => $self->message(accept => $mixed)) }
            1 .. 4 * $self->{amount};
    my @data = ('') x @s;
    my %open = map { $_ => 1 } 0 .. $#s;

    while (%open) {
        for my $i (sort keys %open) {
            my $n = sysread $s[$i], $data[$i], 97, length $data[$i];
            delete $open{$i} unless $n;
        }

        select undef, undef, undef, 0.001;
    }

    return first_of(map { $self->wrong($_, 'slow reader') } @data);
}


# Nothing is read: others do not notice, and after send_timeout the connection
# and its picture are gone.

sub stalled_reader {
    my ($self) = @_;

    my $long = $self->message(accept => $mixed, fields => {
        width => 128, height => 128, steps => 200, latent => 'all' });

    my @s = map { $self->dial(rcvbuf => 1024, port => 'PORT1', send => $long) }
            1 .. 4 * $self->{amount};

    return first_of($self->picture('beside stalled readers'),
                    $self->quiet(60));
}


# To nginx, who has closed his half has gone: his picture is cancelled, or was
# there already.

sub half_closed {
    my ($self) = @_;
    my @wrong;

    for (1 .. 4 * $self->{amount}) {
        my $s = $self->dial(send => $self->message(
            fields => { steps => 1000, width => 128, height => 128 }));

        shutdown $s, SHUT_WR;

        my $data = $self->take($s);
        push @wrong, 'half closed: answered' if $data ne '';
    }

    # before the request is whole, it is none

    my $s = $self->dial(send => substr $self->message(), 0, 100);
    shutdown $s, SHUT_WR;

    my $data = $self->take($s);
    push @wrong, "half a request: $data" if $data =~ m{^HTTP/1.1 [25]};

    return first_of(@wrong, $self->quiet());
}


# the bytes of an exchange at which to reset: some of them, or the next ones

sub positions {
    my ($self, $n, $most) = @_;

    return grep { $_ <= $n } @{$self->{positions}} if $self->{positions};

    return map { int($n * $_ / ($most - 1)) } 0 .. $most - 1;
}


# Reset after any number of bytes of the request: nothing is left of it.

sub reset_request {
    my ($self) = @_;

    my $message = $self->message(fields => { steps => 20 });

    for my $n ($self->positions(length $message, 120)) {
        $self->reset($self->dial(send => substr $message, 0, $n));
    }

    return first_of($self->quiet(), $self->picture('after resets'));
}


# Reset after any number of bytes of the response: the same.

sub reset_response {
    my ($self) = @_;

    my $message = $self->message(accept => $mixed);
    my $all = $self->take($self->dial(send => $message));

    for my $n ($self->positions(length $all, 80)) {
        my $s = $self->dial(send => $message);
        $self->take($s, $n);
        $self->reset($s);
    }

    return first_of($self->quiet(), $self->picture('after resets'));
}


# A byte at a time is a request like any other.

sub single_bytes {
    my ($self) = @_;

    my $s = $self->dial();

    $self->put($s, $_) for split //, $self->message();

    return $self->wrong($self->take($s), 'single bytes');
}


# Too slow for client_header_timeout or client_body_timeout: 408 or a closed
# connection, and the engine knows nothing of it.

sub slow_writer {
    my ($self) = @_;

    my $message = $self->message();
    my $before = $self->{t}->status()->{requests};
    my @s = map { $self->dial(port => 'PORT1', send => substr $message, 0, $_) }
            (1, 40, length($message) - 30, length($message) - 1)
            x $self->{amount};
    my @wrong;

    for (@s) {
        my $data = $self->take($_, undef, 20);
        push @wrong, "slow writer: $data"
            unless $data eq '' || $data =~ m{^HTTP/1.1 408 };
    }

    my $after = $self->{t}->status()->{requests};
    push @wrong, 'slow writer: a request'
        if !$self->{others} && json_encode($before) ne json_encode($after);

    return first_of(@wrong);
}


# They cost nobody anything.

sub idle_connections {
    my ($self) = @_;

    my @s = map { $self->dial() } 1 .. ($self->{idle} // 1000);

    my $wrong = $self->picture('beside idle connections');

    # some have thought of something, and then not of the rest

    $self->put($_, 'POST /gen') for @s[0 .. 99];

    return first_of($wrong, $self->picture('and beginnings'),
                    (map { $self->picture('again') } 1 .. 3));
}


# What is no HTTP, or not ours, is answered 4xx, 501 or 505, or not at all.

sub garbage {
    my ($self) = @_;

    srand $self->{seed}++;

    my $random = sub {
        return join '', map { chr int rand 256 } 1 .. $_[0];
    };

    my @garbage = (
        "\r\n" x 100, "\0" x 1000, "\xff" x 70000,
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" . $random->(200),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" . "\0" x 9,
        "GET\r\n\r\n", "GET /generate\r\n", "GET /generate HTTP/9.9\r\n\r\n",
        "POST /generate HTTP/1.1\r\n\r\n",
        "POST /generate HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 1e9\r\n\r\n",
        "POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
        . "Transfer-Encoding: chunked\r\n\r\n{}",
        "POST /generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
        . "Content-Type: application/json\r\n\r\nzz\r\n",
        "POST /generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
        . "Content-Type: application/json\r\n\r\nffffffffffffffff\r\n{",
        "POST /generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        "POST /../../generate HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /%00generate HTTP/1.1\r\nHost: a\r\n\r\n",
        (map { $random->(1 + int rand 5000) } 1 .. 20 * $self->{amount}),
        (map { $self->message(body => $random->(1 + int rand 5000)) }
             1 .. 20 * $self->{amount}),
        (map { my $m = $self->message(fields => { steps => 2 });
               # in the header: the body's numbers may become other numbers
               my $n = index $m, "\r\n\r\n";
               substr $m, int rand $n, 1, chr(128 + int rand 128);
               $m =~ s/^POST/POXT/; $m } 1 .. 20 * $self->{amount}),
    );

    for (@garbage) {
        my $s = $self->dial(send => $_);
        shutdown $s, SHUT_WR;

        my $data = $self->take($s, undef, 20);

        return 'garbage ' . unpack('H80', $_) . ': ' . substr($data, 0, 200)
            unless $data eq '' || $data =~ m{^HTTP/1.1 (?:4|501|505)}
                   || $data =~ /^(?:<html>|\{"error")/;
    }

    return first_of($self->quiet(), $self->picture('after garbage'));
}


# A body that is shorter than it says never becomes a request; one whose JSON
# is cut is a 400 that says so.

sub truncated_body {
    my ($self) = @_;

    my $before = $self->{t}->status()->{requests};
    my $body = json_encode({ %small });
    my $big = json_encode({ %small, latents => 'A' x 100000 });

    for ([ $body, 0 ], [ $body, 1 ], [ $body, length($body) - 1 ],
         [ $big, 90000 ])
    {
        my ($whole, $n) = @$_;

        my $message = $self->message(body => substr($whole, 0, $n),
                                     length => length $whole);

        for my $how ('shut', 'reset') {
            my $s = $self->dial(send => $message);

            if ($how eq 'reset') {
                $self->reset($s);
                next;
            }

            shutdown $s, SHUT_WR;

            my $data = $self->take($s, undef, 20);
            return "truncated body: $data"
                unless $data eq '' || $data =~ m{^HTTP/1.1 400 };
        }
    }

    my $after = $self->{t}->status()->{requests};

    return 'truncated body: a request'
        if !$self->{others} && json_encode($before) ne json_encode($after);

    for my $n (1, 10, length($body) - 1) {
        my $a = $self->answer($self->take($self->dial(
            send => $self->message(body => substr $body, 0, $n))));

        return "truncated JSON: $a->{status} $a->{body}"
            unless $a->{status} == 400 && $a->{body} =~ /"invalid_json"/;
    }

    return $self->quiet();
}


# Like any other, but that only the connection's end is the end.

sub http10 {
    my ($self) = @_;
    my @wrong;

    for my $accept ('image/jpeg', $mixed) {
        my $data = $self->take($self->dial(send => $self->message(
            version => '1.0', accept => $accept)));

        push @wrong, $self->wrong($data, "HTTP/1.0 $accept");
        push @wrong, 'HTTP/1.0: chunked'
            if $self->answer($data)->{head} =~ /chunked/i;
    }

    my $body = json_encode({ %small });
    my $data = $self->take($self->dial(send =>
        "POST /generate HTTP/1.0\r\nContent-Type: application/json\r\n"
        . "Content-Length: " . length($body) . "\r\n\r\n$body"));

    push @wrong, $self->wrong($data, 'HTTP/1.0 without Host');

    return first_of(@wrong);
}


# Answered in order, each as if alone.

sub pipelining {
    my ($self) = @_;

    my $one = $self->message(keep => 1);
    my $many = $self->message(keep => 1, accept => $mixed);
    my $bad = $self->message(keep => 1, body => '{"prompt":7}');

    my $data = $self->take($self->dial(
        send => $one . $many . $bad . $one . $self->message()));

    for my $n (1 .. 5) {
        my $a = $self->answer($data);

        if ($n == 3) {
            return "pipelining: $a->{status} for what is wrong"
                if $a->{status} != 400;

        } else {
            my $wrong = $self->wrong(substr($data, 0,
                length($data) - length $a->{rest}), "pipelining, $n");
            return $wrong if $wrong ne '';
        }

        $data = $a->{rest};
    }

    return $data eq '' ? '' : 'pipelining: more than was asked for';
}


# 400, 414 or 431, and no memory to speak of.

sub huge_header {
    my ($self) = @_;

    my $big = 'x' x 1000000;

    for ("GET /generate?prompt=$big HTTP/1.1\r\nHost: a\r\n\r\n",
         "GET /$big HTTP/1.1\r\nHost: a\r\n\r\n",
         $self->message(headers => "X-Big: $big\r\n"),
         $self->message(headers => "X$big: 1\r\n"),
         $self->message(headers => "X-Many: 1\r\n" x 50000),
         $self->message(headers => 'Accept: ' . 'image/png,' x 6000 . "\r\n"),
         $self->message(headers => "Host: b\r\n"))
    {
        my $s = $self->dial();
        my $all = $self->put($s, $_);
        my $data = $self->take($s, undef, 20);

        # who goes on sending after the answer may find it reset away

        return 'huge header: ' . substr($_, 0, 40) . ": $data"
            unless $data =~ m{^HTTP/1.1 4(?:00|14|31) } || $data eq '';
    }

    return first_of($self->quiet(), $self->picture('after huge headers'));
}


# All at once, half of whom have gone again: the others have their picture, or
# a 503 that says when to come again.

sub accept_storm {
    my ($self) = @_;

    my @asked;

    for (1 .. ($SD::SANITIZED eq '' ? 150 : 20) * $self->{amount}) {
        $self->reset($self->dial());
        close $self->dial();
        push @asked, $self->dial(send => $self->message());
    }

    my @wrong;
    my $pictures = 0;

    for (@asked) {
        my $data = $self->take($_);
        my $a = $self->answer($data);

        if ($a->{status} == 503) {
            push @wrong, "storm: $data"
                unless $a->{head} =~ /Retry-After: \d/
                       && $a->{body} =~ /queue_full/;

        } else {
            push @wrong, $self->wrong($data, 'storm');
            $pictures++;
        }
    }

    push @wrong, 'storm: no picture at all' unless $pictures;

    return first_of(@wrong, $self->quiet());
}


# what there is of a process: descriptors, threads, kB

sub census {
    my ($self, @pids) = @_;
    my %census;

    @pids = ($self->{t}{pid}, $self->{t}->workers()) unless @pids;

    for my $pid (@pids) {
        my ($rss) = slurp("/proc/$pid/status") =~ /^VmRSS:\s+(\d+)/m;

        $census{$pid} = { fds => scalar(my @f = glob "/proc/$pid/fd/*"),
                          threads => scalar(my @t = glob "/proc/$pid/task/*"),
                          kb => $rss // 0 };
    }

    return \%census;
}


# the same once nothing comes or goes any more: nginx is a moment behind us

sub settled {
    my ($self) = @_;
    my ($census, $last) = ({}, '');

    $self->quiet();

    wait_for {
        select undef, undef, undef, 0.3;
        $census = $self->census();

        my $now = join ' ', map { $census->{$_}{fds} } sort keys %$census;
        my $same = $now eq $last;

        $last = $now;
        $same;
    };

    return $census;
}


1;
