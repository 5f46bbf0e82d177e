#!/usr/bin/perl

# conf/monitoring: the alerts do what they say, the dashboard is one, and both
# know no metric, label or value that sd_metrics does not tell.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $dir = "$SD::TOP/conf/monitoring";

my $t = SD->new(server => <<'END');
        location = /generate { sd_generate; }
        location = /metrics { sd_metrics; }
END

$t->start();
my $text = $t->get('/metrics')->body();
$t->stop();


# what there is: names with their labels and those labels' values

my (%metric, %type);

$type{$1} = $2 while $text =~ /^# TYPE (\S+) (\S+)$/mg;

while ($text =~ /^(sd_\w+)(?:\{(.*)\})? \S+$/mg) {
    my ($name, $labels) = ($1, $2 // '');

    $metric{$name} //= {};
    $metric{$name}{$1}{$2} = 1 while $labels =~ /(\w+)="(.*?)"/g;
}

cmp_ok(scalar keys %type, '>', 25, 'metrics');


# what is asked for

my %asked;

sub known {
    my ($expr, $where) = @_;
    my @wrong;

    while ($expr =~ /\b(sd_\w+)(?:\{(.*?)\})?/g) {
        my ($name, $matchers) = ($1, $2 // '');
        my $labels = $metric{$name};

        $asked{$name =~ s/_(?:bucket|sum|count)$//r} = 1;
        push @wrong, $name unless $labels;

        while ($matchers =~ /(\w+)(!?=~?)"(.*?)"/g) {
            my ($label, $value) = ($1, $3);

            next if $label =~ /^(?:job|instance)$/;
            push @wrong, "$name\{$label=\"$value\"}"
                unless $labels && $labels->{$label}{$value};
        }
    }

    # by (...): job and instance are Prometheus' own

    while ($expr =~ /\bby \((.*?)\)/g) {
        for my $label (split /, /, $1) {
            push @wrong, "by ($label)"
                unless $label =~ /^(?:job|instance|le)$/
                       || grep { $_->{$label} } values %metric;
        }
    }

    is("@wrong", '', $where);
}


# the alerts

for ([ 'check rules', 'rules.yml' ], [ 'test rules', 'rules_test.yml' ]) {
    my ($command, $file) = @$_;

    my $output = `promtool $command $dir/$file 2>&1`;
    is($?, 0, "promtool $command") or diag $output;
}

my $rules = slurp("$dir/rules.yml");
my $tests = slurp("$dir/rules_test.yml");
my @alerts = $rules =~ /^ +- alert: (\w+)$/mg;

cmp_ok(scalar @alerts, '>', 8, 'alerts');

for my $alert (@alerts) {
    my ($expr) = $rules =~ /alert: $alert\n(.*?)(?:labels|for):/s;

    known($expr, "$alert: what it asks for");
    like($tests, qr/alertname: $alert\n +exp_alerts:/, "$alert: is tested");
    like($tests, qr/alertname: $alert }/, "$alert: so is its silence");
}


# the dashboard

my $d = json_decode(slurp("$dir/dashboard.json"));

cmp_ok($d->{schemaVersion}, '>=', 36, 'the schema');
like($d->{uid}, qr/^[\w-]{1,40}$/, 'uid');
ok(length $d->{title}, 'title');

my @variables = map { $_->{name} } @{$d->{templating}{list}};
is("@variables", 'datasource job instance', 'variables');
known($_->{definition}, "variable $_->{name}")
    for grep { $_->{definition} } @{$d->{templating}{list}};

my (%id, @taken, @exprs);

for my $p (@{$d->{panels}}) {
    my $name = $p->{title};
    my $g = $p->{gridPos};

    ok(!$id{$p->{id}}++, "$name: an id of its own");
    like($p->{type}, qr/^(?:stat|timeseries|table)$/, "$name: type");
    ok($g->{w} > 0 && $g->{h} > 0 && $g->{x} >= 0 && $g->{x} + $g->{w} <= 24,
       "$name: is within the grid");
    is($p->{datasource}{uid}, '${datasource}', "$name: datasource");

    my $overlaps = 0;

    for my $y ($g->{y} .. $g->{y} + $g->{h} - 1) {
        $overlaps += $taken[$y][$_]++ ? 1 : 0
            for $g->{x} .. $g->{x} + $g->{w} - 1;
    }

    is($overlaps, 0, "$name: overlaps none");
    cmp_ok(scalar @{$p->{targets}}, '>', 0, "$name: asks for something");

    my %ref;

    for (@{$p->{targets}}) {
        ok(!$ref{$_->{refId}}++, "$name: $_->{refId}");
        known($_->{expr}, "$name: $_->{refId}: what it asks for");
        push @exprs, $_->{expr};

        my @unknown = grep { my $v = $_; !grep { $v eq $_ } @variables }
                      grep { $_ ne '__rate_interval' }
                      $_->{expr} =~ /\$(\w+)/g;
        is("@unknown", '', "$name: $_->{refId}: its variables");
    }
}


# PromQL, as Prometheus parses it

my $file = "$t->{dir}/exprs.yml";

open my $f, '>', $file or die "$!";
print $f "groups:\n- name: a\n  rules:\n";

for (0 .. $#exprs) {
    my $expr = $exprs[$_] =~ s/\$__rate_interval/5m/gr;
    print $f "  - record: a:$_\n    expr: '" . $expr =~ s/'/''/gr . "'\n";
}

close $f;

my $output = `promtool check rules $file 2>&1`;
is($?, 0, 'each is PromQL') or diag $output;


# and nothing is told that nobody looks at

is(join(' ', grep { !$asked{$_} } sort keys %type), 'sd_build_info',
   'what neither asks for');

done_testing();
