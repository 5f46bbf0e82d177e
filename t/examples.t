#!/usr/bin/perl

# conf/examples: each configuration is valid, but for the paths of other hosts;
# the balancer and the limits do what they say; and the numbers in the files
# for systemd and Kubernetes fit each other and the images.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $mixed = 'multipart/mixed';
my %small = (prompt => 'a red house', width => 64, height => 64, steps => 2,
             seed => 7);

my $examples = "$SD::TOP/conf/examples";


# an example with this host's paths and ports: what it listens at is PORT, what
# it asks, 10.0.0.N, is at PORTN

sub example {
    my ($name) = @_;

    my $conf = slurp("$examples/$name");

    ok(length $conf, $name);

    $conf =~ s{modules/(ngx_http_sd_module\.so)}{$SD::BUILD/$1};
    $conf =~ s{/var/lib/models/[\w.-]+}{%%MODEL%%}g;
    $conf =~ s{/var/log/nginx|/var/cache/nginx|/etc/ssl/pictures}{%%DIR%%}g;
    $conf =~ s{10\.0\.0\.(\d):8080}{127.0.0.1:%%PORT$1%%}g;

    my $port = 0;
    $conf =~ s{listen (?:80|8080|443)\b}
              {'listen 127.0.0.1:%%PORT' . ($port++ ? 8 + $port : '') . '%%'}ge;

    my $temp = join '', map { " ${_}_temp_path %%DIR%%/tmp/$_;\n" }
               qw/ client_body proxy fastcgi uwsgi scgi /;
    $conf =~ s/^http \{\n/http {\n$temp/m;

    my $user = $> == 0 ? 'user root;' : '';
    my $log = $conf =~ /^error_log/m ? '' : 'error_log %%DIR%%/error.log info;';

    return SD->new(conf => "$user\n$log\npid %%DIR%%/nginx.pid;\n$conf");
}


# every one of them

my @confs = map { s{.*/}{}r } glob "$examples/*.conf";
cmp_ok(scalar @confs, '>=', 5, 'examples');

for my $name (@confs) {
    my $t = example($name);

    if ($name eq 'tls.conf') {
        my $rc = system("openssl req -x509 -newkey rsa:2048 -nodes -days 1"
            . " -subj /CN=pictures.example.com -keyout $t->{dir}/key.pem"
            . " -out $t->{dir}/fullchain.pem 2>/dev/null");
        is($rc, 0, 'a certificate');
    }

    my ($rc, $out) = $t->check();

    is($rc, 0, "$name: nginx -t") or diag $out;
    unlike($out, qr/\[warn\]/, "$name: no warning");

    my $conf = slurp("$examples/$name");
    my ($drain) = $conf =~ /sd_drain_timeout\s+(\d+)s;/ or next;
    my ($shutdown) = $conf =~ /^worker_shutdown_timeout\s+(\d+)s;/m;

    cmp_ok($drain, '<', $shutdown // 0, "$name: time to drain");
}


# two servers and a balancer

sub server {
    my ($port) = @_;

    my $t = SD->new(conf => '');
    $t->{ports}{PORT} = $port;

    return $t->configure(http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_device cpu;
    sd_slots 1;
    sd_queue 0;
    sd_max_steps 1000;
END
        client_max_body_size 16m;
        location = /generate { sd_generate; }
END
}

my $lb = example('load-balancer.conf');
my @s = map { server($lb->port("PORT$_")) } 1 .. 2;

$_->start() for @s;
$lb->start(ready => 0);

my %long = (%small, steps => 1000, width => 256, height => 256);
my $jpeg = $s[0]->post('/generate', { %small })->body();


# until so many run, of all or of some

sub running {
    my ($n, @on) = @_;

    @on = @s unless @on;

    wait_for {
        my $sum = 0;
        $sum += $_->status()->{running} for @on;
        $sum == $n;
    } or die "$n do not run\n";
}

for (1 .. 4) {
    same($lb->post('/generate', { %small })->body(), $jpeg, 'a picture');
    running(0);
}


# as it happens, with what tells the next proxy not to buffer

my $r = $lb->post('/generate', { %long }, Accept => $mixed);

while (my $p = $r->part()) {
    last if $p->{event} eq 'preview';
}

running(1);
pass('a preview comes while it runs');
is($r->header('X-Accel-Buffering'), 'no', 'X-Accel-Buffering');


# one is full now: the others go elsewhere, whichever comes first

for (1 .. 3) {
    same($lb->post('/generate', { %small })->body(), $jpeg,
         'one is full, the other takes it');
    running(1);
}


# both are

my $r2 = $lb->post('/generate', { %long }, Accept => $mixed);
$r2->part();
running(2);

my $full = $lb->post('/generate', { %small });
is($full->status(), 503, 'both are full');
like($full->header('Retry-After'), qr/^\d+$/, 'the server\'s Retry-After');
is(json_decode($full->body())->{error}{code}, 'queue_full', 'and its words');


# the client's leaving goes all the way

$_->close() for $r, $r2;
running(0);
pass('clients leave');

is($lb->post('/generate', { %small }, Accept => 'text/event-stream',
            'Last-Event-ID' => '7')->status(), 204, 'Last-Event-ID');


# one ends

$s[0]->stop();

for (1 .. 4) {
    same($lb->post('/generate', { %small })->body(), $jpeg, 'one is stopped');
    running(0, $s[1]);
}


# one is killed in the middle of a picture of which no byte was sent: that is
# made again, a POST though it is

$s[0]->start();

$r = $lb->post('/generate', { %small, steps => 200 });
running(1);

my ($dies, $lives) = $s[0]->status()->{running} ? @s : reverse @s;

kill 'KILL', $dies->{pid}, $dies->workers();
$dies->{pid} = undef;

is($r->status(), 200, 'one is killed');
my $again = $r->body();
running(0, $lives);
same($lives->post('/generate', { %small, steps => 200 })->body(), $again,
     'its picture is made by the other');


my $id = $r->header('X-Request-Id');
my $logged = sub { slurp($_[0]) =~ /id=\Q$id\E\b/ };

ok((wait_for { $logged->("$lb->{dir}/pictures.log") }), 'the balancer\'s log');
ok((wait_for { $logged->("$lives->{dir}/access.log") }),
   'and the server\'s have the same id');


# none is there

$lives->stop();

my $none = $lb->post('/generate', { %small });
is($none->status(), 503, 'none is there');
is($none->header('Retry-After'), 1, 'Retry-After');
is(json_decode($none->body())->{error}{code}, 'unavailable', 'an object');

$lb->stop();


# limits

my $t = example('limits.conf');
$t->start(ready => 0);

my $low = sub { $t->post('/generate', { %small, @_ }) };
my $high = sub { $t->post('/v1/generate', { %small, @_ },
                          Authorization => 'Bearer 4c3f2e1d') };

same($low->()->body(), $jpeg, 'limits: a picture');
is($low->(steps => 26)->status(), 400, 'limits: too many steps');
is($t->post('/v1/generate', { %small })->status(), 401, 'limits: no key');
same($high->()->body(), $jpeg, 'limits: with a key');

my @r = map { $t->post('/generate', { %small, width => 256, height => 256,
                                      steps => 25 }, Accept => $mixed) } 1 .. 4;
$_->part() for @r;

my $limited = $low->();
is($limited->status(), 429, 'limits: the fifth at a time');
is($limited->header('Retry-After'), 1, 'limits: Retry-After');
is(json_decode($limited->body())->{error}{code}, 'rate_limit_exceeded',
   'limits: an object');
is($high->()->status(), 200, 'limits: another client');

$_->close() for @r;

my %codes;
$codes{$t->post('/generate', '{')->status()}++ for 1 .. 30;
ok($codes{400} && $codes{429}, 'limits: too many a second')
    or diag json_encode(\%codes);

$t->stop();


# systemd

my $unit = slurp("$examples/systemd/nginx.service.d.conf");
my ($stop) = $unit =~ /^TimeoutStopSec=(\d+)$/m;
my ($shutdown) = slurp("$examples/several-gpus.conf")
                 =~ /^worker_shutdown_timeout\s+(\d+)s;/m;

cmp_ok($stop, '>', $shutdown, 'systemd: waits for nginx');
like($unit, qr/^KillSignal=SIGQUIT$/m, 'systemd: QUIT');
like($unit, qr/^KillMode=mixed$/m, 'systemd: to the master');

SKIP: {
    my $service = '/lib/systemd/system/nginx.service';

    skip 'no systemd-analyze', 1
        unless -x '/usr/bin/systemd-analyze' && -f $service;

    my $dir = $t->{dir};

    system("mkdir $dir/nginx.service.d && cp $service $dir"
        . " && cp $examples/systemd/nginx.service.d.conf"
        . "       $dir/nginx.service.d/sd.conf") == 0 or die;

    my $out = `systemd-analyze verify --man=no $dir/nginx.service 2>&1`;
    unlike($out, qr/sd\.conf/, 'systemd: takes it');
}


# Kubernetes

my @objects = map { @{json_decode(
    scalar `python3 -c 'import json, sys, yaml
print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))' $_`)} }
    glob "$examples/kubernetes/*.yaml";

my %kind;
push @{$kind{$_->{kind}}}, $_ for @objects;

is_deeply([ sort keys %kind ], [ qw/ Deployment PodDisruptionBudget PodMonitor
                                     ScaledObject Service / ], 'kubernetes');

my %metrics = map { $_ => 1 }
              slurp("$SD::TOP/README.md") =~ /^\| `(sd_\w+)/mg;

for (map { @{$_->{spec}{triggers}} } @{$kind{ScaledObject}}) {
    my @names = map { s/_bucket$//r } $_->{metadata}{query} =~ /\b(sd_\w+)/g;

    ok(scalar @names, "autoscaling by @names");
    is("@{[ grep { !$metrics{$_} } @names ]}", '', 'which are metrics');
}

my ($ops) = slurp("$SD::TOP/docker/nginx.conf") =~ /(ops\.conf.*)/s;

for my $d (@{$kind{Deployment}}) {
    my $name = $d->{metadata}{name};
    my $pod = $d->{spec}{template};
    my $c = $pod->{spec}{containers}[0];
    my %labels = %{$pod->{metadata}{labels}};

    is_deeply($d->{spec}{selector}{matchLabels}, \%labels,
              "$name: selects its pods");

    for (map { @{$kind{$_}} } qw/ Service PodMonitor PodDisruptionBudget /) {
        my $selector = $_->{spec}{selector}{matchLabels}
                       // $_->{spec}{selector};

        is_deeply({ %labels, %$selector }, \%labels, "$name: $_->{kind}");
    }

    my %port = map { $_->{name} => $_->{containerPort} } @{$c->{ports}};
    is_deeply(\%port, { http => 8080, ops => 8081 }, "$name: ports");

    for (qw/ startupProbe readinessProbe livenessProbe /) {
        my $path = $c->{$_}{httpGet}{path};

        is($c->{$_}{httpGet}{port}, 'ops', "$name: $_");
        like($ops, qr/location = \Q$path\E \{/, "$name: the image has $path");
    }

    for (@{$kind{PodMonitor}[0]{spec}{podMetricsEndpoints}}) {
        is($_->{port}, 'ops', 'PodMonitor: the port');
        like($ops, qr/location = \Q$_->{path}\E \{/, 'PodMonitor: the path');
    }

    my %env = map { $_->{name} => $_->{value} } @{$c->{env}};


    # the time that each has, in the order in which they end

    my ($drain) = $env{SD_DRAIN_TIMEOUT} =~ /^(\d+)s$/;
    my ($end) = $env{WORKER_SHUTDOWN_TIMEOUT} =~ /^(\d+)s$/;
    my $before = $c->{lifecycle}{preStop}{exec}{command}[1];

    cmp_ok($drain, '<', $end, "$name: time to drain");
    cmp_ok($before + $end, '<', $pod->{spec}{terminationGracePeriodSeconds},
           "$name: time to end");


    # what serve makes of the environment is a configuration

    my $directives = join '', map { lc . " $env{$_};\n" }
                     grep { /^SD_/ } sort keys %env;
    $directives =~ s{/var/cache/sd/plans}{%%DIR%%/plans};

    my ($rc, $out) = SD->new(http => "sd_model %%MODEL%%;\n$directives",
        server => 'location = /generate { sd_generate; }')->check();
    is($rc, 0, "$name: the environment") or diag $out;
}

done_testing();
