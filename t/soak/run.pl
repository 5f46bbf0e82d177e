#!/usr/bin/perl

# All the weather of t/faults.t for a long time, several kinds at once, in random
# order: first on one and the same processes, then with reloads, some of them in
# a row.  Then there is as much of everything as there was, and the picture is
# the same.
#
#     SOAK_TIME=600 SOAK_SEED=1 t/soak/run.pl [--write]
#
# --write: the table into bench/RESULTS.md.

use warnings;
use strict;

use FindBin;
use List::Util qw/ max shuffle /;
use POSIX qw/ strftime /;
use Test::More;
use Time::HiRes qw/ time /;

use lib "$FindBin::Bin/../lib";

BEGIN {
    if (!$ENV{SD_FAULTS_FILES}) {
        $ENV{SD_FAULTS_FILES} = 1;
        exec 'bash', '-c', 'ulimit -n 8192 2>/dev/null '
             . '|| ulimit -n $(ulimit -Hn); exec "$@"', 'bash', $^X, $0, @ARGV;
    }
}

use SD;
use SD::Weather;

$SIG{PIPE} = 'IGNORE';
$| = 1;

my $seconds = $ENV{SOAK_TIME} || 600;
my $seed = $ENV{SOAK_SEED} || 1 + time() % 100000;

diag("$seconds seconds, seed $seed");
srand $seed;

my $t = SD->new(SD::Weather::conf());
$t->start();

my $w = SD::Weather->new($t);
my (%times, $reloads, @failed);

my $message = $w->message(accept => 'multipart/mixed');
my $bytes = max(length $message,
                length $w->take($w->dial(send => $message)));
my $reset = 0;


# where the next resets are

sub positions {
    my ($kind) = @_;

    return unless $kind eq 'reset_request' || $kind eq 'reset_response';

    my $n = $kind eq 'reset_response' ? 250 : 50;
    my @positions = map { ($reset + $_) % $bytes } 0 .. $n - 1;

    $reset += $n if $kind eq 'reset_response';

    return positions => \@positions;
}


# one kind in a process of its own

sub weather {
    my ($kind, @more) = @_;

    $times{$kind}++;

    my @args = (seed => int rand 1e9, amount => 1 + int rand 2,
                idle => 200 + int rand 800, others => 1, positions($kind));

    my $pid = fork() // die "fork: $!";

    if ($pid == 0) {
        my $own = bless { %$w, @args }, 'SD::Weather';
        my $wrong = eval { $own->$kind() } // "$kind died: $@";

        open my $f, '>', "$t->{dir}/wrong.$$";
        print $f $wrong;
        close $f;

        POSIX::_exit(0);
    }

    return $pid;
}


sub reload {
    my ($wait) = @_;

    my $pid = $wait && $t->status()->{pid};

    $t->signal('HUP');
    $reloads++;

    wait_for { my $s = eval { $t->status() }; $s && $s->{pid} != $pid } 60
        or push @failed, 'no new engine after a reload' if $wait;
}


# several kinds at once, and then peace

sub round {
    my ($with_reloads) = @_;

    my @kinds = (shuffle @SD::Weather::KINDS)[0 .. 2];

    # a connection that is kept alive ends with its worker
    @kinds = grep { $_ ne 'pipelining' } @kinds if $with_reloads;

    my %running = map { weather($_) => $_ } @kinds;

    if ($with_reloads) {
        my $row = rand() < 0.3 ? 5 : 1;
        reload($_ == $row) for 1 .. $row;
    }

    my $picture = $w->picture('meanwhile');
    push @failed, $picture if $picture ne '';

    for my $pid (keys %running) {
        waitpid $pid, 0;

        my $wrong = slurp("$t->{dir}/wrong.$pid");
        $wrong = "$running{$pid} ended with $?" if $?;
        push @failed, $wrong if $wrong ne '';
        unlink "$t->{dir}/wrong.$pid";
    }

    push @failed, grep { $_ ne '' } $w->quiet(60), $w->picture('afterwards');
    diag($_) for splice @failed, 0, @failed > 3 ? 3 : 0;
}


# by what they do, as a reload has others do it

sub census {
    my $engine = $t->status()->{pid};
    my %census;

    # old workers end when what they have to do is done
    wait_for { $t->workers() == 2 } 60
        or push @failed, 'old workers stay: ' . join ' ', $t->workers();

    my $all = $w->settled();

    for my $pid (keys %$all) {
        my $role = $pid == $t->{pid} ? 'master' : $pid == $engine ? 'engine'
                   : 'worker';
        $census{$role} = { %{$all->{$pid}}, pid => $pid };
    }

    return \%census;
}


sub compare {
    my ($before, $name, %same) = @_;

    my $after;

    wait_for {
        $after = census();
        !grep { $after->{$_}{fds} != $before->{$_}{fds}
                || $after->{$_}{threads} != $before->{$_}{threads} }
              qw/ master engine worker /;
    } 30;

    for (qw/ master engine worker /) {
        my ($b, $a) = ($before->{$_}, $after->{$_});

        is($a->{fds}, $b->{fds}, "$name, $_: descriptors");
        is($a->{threads}, $b->{threads}, "$name, $_: threads");
        is($a->{pid}, $b->{pid}, "$name, $_: the same process")
            if $same{processes};
        cmp_ok($a->{kb}, '<=', $b->{kb} + 16384,
               "$name, $_: $a->{kb} kB after $b->{kb} kB");
    }

    return $after;
}


sub phase {
    my ($name, $time, $with_reloads) = @_;

    my $end = time() + $time;
    my $rounds = 0;

    while (time() < $end) {
        round($with_reloads);
        $rounds++;
        last if @failed > 10;
    }

    is(join("\n", @failed), '', "$name: $rounds rounds");
    @failed = ();

    return $rounds;
}


is($w->$_(), '', "$_, before") for @SD::Weather::KINDS;

my @census = census();
my $rounds = phase('the same processes', $seconds / 2, 0);
push @census, compare($census[0], 'the same processes', processes => 1);

$rounds += phase('with reloads', $seconds / 2, 1);
push @census, compare($census[0], 'with reloads');

is($w->picture('at last'), '', 'the same picture');

$t->stop();


# what it was, in a table

my $when = strftime('%Y-%m-%d %H:%M UTC', gmtime);
my $all = join ', ', map { "$_ $times{$_}" } sort keys %times;

my $table = <<"END";
## `make soak`: hostile weather

$when, $seconds seconds, seed $seed: $rounds rounds of three kinds at once, of
2 workers and the embedded model; $reloads reloads in the second half.
A reset at each byte of an exchange of $bytes bytes, @{[ sprintf '%.1f',
    $reset / $bytes ]} times.  Kinds: $all.
Failures: @{[ Test::More->builder->is_passing() ? 'none' : '**some**' ]}.

| | descriptors | threads | resident, MB |
| --- | --- | --- | --- |
END

for my $role (qw/ master engine worker /) {
    $table .= "| $role | " . join(' | ', map {
        my $what = $_;
        join ' / ', map {
            my $v = $_->{$role}{$what};
            $what eq 'kb' ? sprintf '%.1f', $v / 1024 : $v;
        } @census;
    } qw/ fds threads kb /) . " |\n";
}

$table .= "\nBefore / after the half without reloads / after the one with.\n";

diag("\n$table");

if (grep { $_ eq '--write' } @ARGV) {
    open my $p, '|-', "python3 $SD::TOP/bench/results.py soak" or die "$!";
    print $p $table;
    close $p;
}

done_testing();
