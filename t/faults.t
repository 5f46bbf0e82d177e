#!/usr/bin/perl

# Hostile weather: what clients may do to a server (SD::Weather says what is
# promised of each), a full disk, no descriptors, no memory.  At the end all
# processes have what they had, and the picture is still the same.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

# more descriptors than a shell gives, for us and for nginx

BEGIN {
    if (!$ENV{SD_FAULTS_FILES}) {
        $ENV{SD_FAULTS_FILES} = 1;
        exec 'bash', '-c', 'ulimit -n 8192 2>/dev/null '
             . '|| ulimit -n $(ulimit -Hn); exec "$@"', 'bash', $^X, '-I',
             "$FindBin::Bin/lib", $0, @ARGV;
    }
}

use SD;
use SD::Weather;

$SIG{PIPE} = 'IGNORE';

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 2,
             seed => 7);


# clients

my $t = SD->new(SD::Weather::conf());
$t->start();

my $w = SD::Weather->new($t);

# memory that pictures of these sizes need, and connections, is there to stay

is($w->$_(), '', "$_, before") for qw/ stalled_reader accept_storm
                                       idle_connections huge_header /;

my $before = $w->settled();

is($w->$_(), '', $_) for @SD::Weather::KINDS;

for my $pid (sort keys %$before) {
    my $b = $before->{$pid};

    ok((wait_for { $w->census($pid)->{$pid}{fds} <= $b->{fds} } 20),
       "$pid: $b->{fds} descriptors as before");

    my $now = $w->census($pid)->{$pid};
    is($now->{threads}, $b->{threads}, "$pid: as many threads");

    # a sanitizer keeps what was freed
    cmp_ok($now->{kb}, '<=', $b->{kb} + 8192,
           "$pid: $now->{kb} kB after $b->{kb} kB")
        if $SD::SANITIZED eq '';
}

is_deeply([ sort keys %{$w->census()} ], [ sort keys %$before ],
    'the same processes');
is($w->picture('at last'), '', 'the same picture');

$t->stop();


# an nginx under a limit of the shell's

sub limited {
    my ($t, $limit) = @_;

    my $runtime = $SD::RUNTIME;

    local $SD::NGINX = "$t->{dir}/nginx";
    local $SD::RUNTIME = '';            # bash ends by tsan's

    open my $f, '>', $SD::NGINX or die "$!";
    print $f "#!/bin/bash\nulimit $limit || exit 1\n"
             . "export LD_PRELOAD=$runtime\n"
             . "exec ${\($ENV{TEST_NGINX_BINARY} // '/usr/sbin/nginx')} "
             . "\"\$@\"\n";
    close $f;
    chmod 0755, $SD::NGINX;

    return $t->start();
}


# a full disk: a body that would go into a file is refused, others are not

{
    local $SIG{XFSZ} = 'IGNORE';

    my $t = SD->new(http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    client_max_body_size 8m;
    client_body_buffer_size 4k;
END
        location = /generate { sd_generate; }
END
    limited($t, '-f 64');

    my $want = $t->post('/generate', { %small })->body();

    for (1 .. 3) {
        my $r = $t->post('/generate', { %small, x => 'x' x 300000 });
        is($r->status(), 500, 'no room for the body: 500');

        same($t->post('/generate', { %small })->body(), $want,
            'one that needs no room');
    }

    is($t->post('/generate', { %small, x => 'x' x 30000 })->status(), 200,
        'one that has room');

    my @files = glob "$t->{dir}/tmp/body/*";
    is("@files", '', 'no file is left');

    $t->stop(except => qr/\[crit\].*\(27: File too large\)/);
}


# no descriptors: who is in is served, who is not waits; later all is well

{
    my $t = SD->new(main => "worker_processes 2;\nworker_rlimit_nofile 48;\n",
                    server => <<'END');
        location = /generate { sd_generate; }
END
    $t->start();

    my $w = SD::Weather->new($t);
    my @idle = map { $w->dial() } 1 .. 120;

    ok((wait_for { $t->log() =~ /\(24: Too many open files\)/ } 20),
       'no descriptors are left');

    # these wait in the backlog, or find none for the engine: 500

    my @r = map { $w->dial(send => $w->message()) } 1 .. 4;

    ok(!!kill(0, $t->workers()), 'the workers live');

    @idle = ();

    for (@r) {
        my $data = $w->take($_, undef, 30);
        ok($data =~ m{^HTTP/1.1 50[0234] } || $w->wrong($data, '') eq '',
           'an error, or a picture: ' . substr $data, 0, 12);
    }

    is($w->picture('then'), '', 'the next ones are served') for 1 .. 4;
    is($w->quiet(), '', 'and gone');

    $t->stop(except => qr/\(24: Too many open files\)/);
}


# no memory for a big picture: an error, and small ones as before

SKIP: {
    skip 'a sanitizer needs address space', 1 if $SD::SANITIZED ne '';

    my %o = (http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_max_pixels 16777216;
END
        location = /generate { sd_generate; }
END

    # how much it is with small pictures

    my $t = SD->new(%o);
    $t->start();

    my $want = $t->post('/generate', { %small })->body();
    my $pid = $t->status()->{pid};
    my ($size) = slurp("/proc/$pid/status") =~ /^VmPeak:\s+(\d+)/m;

    $t->stop();

    $t = SD->new(%o);
    limited($t, '-v ' . ($size + 200 * 1024));

    my %big = (%small, width => 4096, height => 4096);

    for (1 .. 3) {
        my $r = $t->post('/generate', { %big });
        is($r->status(), 503, 'too big for memory: 503');
        is(eval { json_decode($r->body())->{error}{code} }, 'no_memory',
           'with its code');

        my @r = map { $t->post('/generate', { %big }) } 1 .. 4;
        same($t->post('/generate', { %small })->body(), $want,
            'a small one beside it');
        is($_->status(), 503, 'several at a time') for @r;
    }

    is($t->status()->{pid}, $t->status()->{pid}, 'the same process');
    same($t->post('/generate', { %small })->body(), $want, 'and after it');

    $t->stop();
}

done_testing();
