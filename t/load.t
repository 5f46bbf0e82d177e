#!/usr/bin/perl

# Many clients at a time: with the default they all see something soon, and
# take no longer than one after the other.  bench/load measures it properly;
# here are ratios that hold on a machine that does other things, too.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $load = "$SD::BUILD/bench/load";

plan(skip_all => "no $load") unless -x $load;

my $location = "        location = /generate { sd_generate; }\n";

my %t = (one => SD->new(server => $location,
                        http => "sd_model %%MODEL%%; sd_slots 1;\n"),
         many => SD->new(server => $location));

$_->start() for values %t;


sub clients {
    my ($mode, @args) = @_;

    my $out = qx{$load -j -p ${\$t{$mode}->port()} @args};
    is($?, 0, "$mode: @args");

    return json_decode($out);
}


my ($clients, $steps) = $SD::SANITIZED ? (4, 4) : (16, 24);
my $fields = qq{-b '"width":64,"height":64,"steps":$steps'};

for my $format (qw/ multipart sse /) {
    my %f = map { $_ => clients($_, "-c $clients -n 2 -f $format", $fields) }
            qw/ one many /;

    for (qw/ one many /) {
        is($f{$_}{pictures}, 2 * $clients, "$format, $_: all pictures");
        is($f{$_}{failed} + $f{$_}{refused}, 0, "$format, $_: no trouble");
        is($f{$_}{first_preview}{n}, 2 * $clients,
            "$format, $_: all with previews");
    }

    SKIP: {
        skip 'a sanitizer\'s times tell nothing', 3 if $SD::SANITIZED;

        my $sooner = $f{one}{first_preview}{p50} / $f{many}{first_preview}{p50};
        my $rate = $f{many}{pictures_per_minute} / $f{one}{pictures_per_minute};

        cmp_ok($sooner, '>=', 5,
               sprintf '%s: the first preview is there %.1f times as soon', $format,
               $sooner);
        cmp_ok($f{many}{fairness}, '>=', 0.95,
               sprintf '%s: fairness of equal jobs %.3f', $format,
               $f{many}{fairness});
        cmp_ok($rate, '>=', 0.7, sprintf '%s: %.2f of the throughput', $format,
               $rate);
    }
}


# for a time, and more clients than there is room for

my $f = clients('many', '-c 96 -t 0.5', $fields);
cmp_ok($f->{pictures}, '>=', 80, 'for a time: pictures');
is($f->{failed}, 0, 'those who are refused ask again');

$_->stop() for values %t;

done_testing();
