#!/usr/bin/perl

# The engine's socket is for nginx's own workers: whoever else connects, of
# another user or of the same one, is closed before he can say anything, and
# costs neither descriptors, nor room in the log, nor time of the engine.

use warnings;
use strict;

use FindBin;
use IO::Select;
use Socket qw/ AF_UNIX SOCK_STREAM pack_sockaddr_un /;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

$SIG{PIPE} = 'IGNORE';

my $t = SD->new(main => 'worker_processes 2;', server => <<'END');
        location = /generate { sd_generate; }
END

my %others = map { $_ => 1 } sockets();
$t->start();

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 1,
             seed => 7);
my $want = $t->post('/generate', { %small })->body();


sub sockets {
    return slurp('/proc/net/unix') =~ /\@(nginx-sd-[0-9a-f]+)$/mg;
}

# there may be others of tests beside us

my @names = grep { !$others{$_} } sockets();
my %seen;
@names = grep { !$seen{$_}++ } @names;

ok(@names >= 1, 'the socket has a name that is there to see');


# a connection, perhaps some bytes; true where it is closed, and nothing said

sub refused {
    my ($name, $bytes) = @_;

    socket my $s, AF_UNIX, SOCK_STREAM, 0 or die "$!";

    # pack_sockaddr_un() would not leave an abstract name as it is
    connect $s, pack('S', AF_UNIX) . "\0$name" or return 1;

    syswrite $s, $bytes if length $bytes;

    IO::Select->new($s)->can_read(10) or return 0;

    return !sysread $s, my $data, 1;
}


# a frame's beginning, with a cookie that is a guess: see src/engine/frame.h

my $frame = pack('LL', 0x31464453, 4000) . "\x5a" x 32 . "\0" x 4000;


# in a process of its own, of another user

sub as_user {
    my ($uid, $code) = @_;

    my $pid = fork() // die "fork: $!";

    if ($pid == 0) {
        if ($uid != $>) {
            require POSIX;
            POSIX::setgid($uid);
            POSIX::setuid($uid);
        }

        POSIX::_exit($code->() ? 0 : 1);
    }

    waitpid $pid, 0;
    return $? == 0;
}

require POSIX;

my $engine = $t->status()->{pid};
my $before = () = glob "/proc/$engine/fd/*";
my $requests = $t->status()->{requests};

for my $uid ($>, $> == 0 ? 65534 : ()) {
    my $who = $uid == $> ? 'the same user' : 'another user';

    for my $name (@names) {
        ok(as_user($uid, sub { refused($name, '') }), "$who: closed");
        ok(as_user($uid, sub { refused($name, $frame) }),
           "$who: with a frame, too");
        ok(as_user($uid, sub {
            for (1 .. 500) {
                refused($name, $frame) or return 0;
            }
            1;
        }), "$who: 500 times");
    }

    same($t->post('/generate', { %small })->body(), $want,
        "$who: pictures as before");
}

is($t->status()->{pid}, $engine, 'the same engine');
is($t->status()->{requests}{rejected}, $requests->{rejected},
   'which knows nothing of it');
# fewer, where a request's connection was being closed at first

ok((wait_for { my @f = glob "/proc/$engine/fd/*"; @f <= $before } 10),
   'no descriptor is left');

my @lines = $t->log() =~ /\[warn\].*connections of others/g;
ok(@lines >= 1 && @lines <= 10, 'lines in the log: ' . @lines);


# a worker that takes another's place may, and so may those of the next cycle

my ($other) = grep { $_ != $engine } $t->workers();
kill 'KILL', $other;
ok((wait_for { $t->workers() == 2 && !grep { $_ == $other } $t->workers() } 10),
   'a worker is respawned');
same($t->post('/generate', { %small })->body(), $want, "it may ask: $_")
    for 1 .. 4;

$t->signal('HUP');
ok((wait_for { $t->status()->{pid} != $engine } 30), 'after a reload');
same($t->post('/generate', { %small })->body(), $want, "they may: $_")
    for 1 .. 4;

$t->stop(except => qr/worker process $other exited on signal 9/);

done_testing();
