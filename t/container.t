#!/usr/bin/perl

# What containers run, in place: docker/serve with docker/nginx.conf, of which
# only paths and the user are changed; and what Dockerfiles say.  The images
# themselves are built and run by `make container-test`, which takes minutes.

use warnings;
use strict;

use FindBin;
use MIME::Base64;
use Test::More;
use Time::HiRes qw/ time /;

use lib "$FindBin::Bin/lib";

use SD;
use SD::Container;

plan(skip_all => 'it is of scripts') if $SD::SANITIZED ne '';

my $mixed = 'multipart/mixed';
my %small = (prompt => 'a red house', width => 64, height => 64, steps => 2,
             seed => 7);


# the Dockerfiles

for my $file ('docker/Dockerfile.cpu', 'docker/Dockerfile.cuda') {
    my $c = SD::Container->new($file);

    for my $stage (@{$c->{stages}}) {
        for (grep { $_->[0] eq 'COPY' && $_->[1] !~ /^--from/ }
             @{$stage->{steps}})
        {
            my (@sources) = split / /, $_->[1];
            pop @sources;

            ok(scalar(SD::Container::sources($_)), "$file: COPY $_")
                for @sources;
        }
    }

    is(scalar $c->says('STOPSIGNAL'), 'SIGQUIT', "$file: STOPSIGNAL");
    is(scalar $c->says('EXPOSE'), 8080, "$file: EXPOSE");
    is_deeply([ $c->command('CMD') ], [ 'serve' ], "$file: CMD");
    is_deeply([ $c->command('HEALTHCHECK') ], [ 'ready' ],
              "$file: HEALTHCHECK");
}

ok(SD::Container::sees($_), "a build sees $_")
    for qw{ Makefile config.make ngx_http_sd_module.c src/io/file.c cuda/gemm.c
            html/sd.js model/unet/config.json docker/build };

ok(!SD::Container::sees($_), "a build does not see $_")
    for qw{ .git/HEAD build/sd model/train/train.py t/container.t bench/run };


# serve

my $t;

delete @ENV{grep { /^SD_/ } keys %ENV};
$ENV{SERVE_NGINX} = $SD::NGINX;
$ENV{SM_MODEL_DIR} = $SD::MODEL;

sub serve {
    my (%env) = @_;

    $t = SD->new(conf => '');

    my $dir = $t->{dir};
    my $conf = slurp("$SD::TOP/docker/nginx.conf");

    $conf =~ s{/usr/lib/nginx/modules/}{$SD::BUILD/};
    $conf =~ s{/usr/local/share/sd/html}{$SD::TOP/html};
    $conf =~ s{/tmp/sd/}{$dir/sd/}g;
    $conf =~ s{mime\.types}{/etc/nginx/mime.types};
    $conf =~ s{include (errors|log)\.conf}{include $SD::TOP/conf/$1.conf}g;
    $conf =~ s{www-data}{root} if $> == 0;

    open my $f, '>', "$dir/nginx.conf" or die "$!";
    print $f $conf;
    close $f;

    %env = (%ENV, SERVE_RUN => "$dir/sd", PORT => $t->port('PORT'),
            OPS_PORT => $t->port('PORT1'), %env);

    $t->{child} = fork() // die "fork: $!";

    if ($t->{child} == 0) {
        %ENV = %env;

        # a shell can catch no signal that is ignored where it begins, as
        # SIGQUIT is in the background of another
        $SIG{$_} = 'DEFAULT' for qw/ HUP INT QUIT TERM /;

        open STDOUT, '>', "$dir/stdout";
        open STDERR, '>', "$dir/error.log";
        exec "$SD::TOP/docker/serve", '-c', "$dir/nginx.conf";
        exit 127;
    }

    $t->{pid} = $t->{child};
}


# waits for its end: the exit status, and how long it took

sub ended {
    my $start = time();
    my $done = wait_for { waitpid($t->{child}, 1) == $t->{child} };
    my $status = $?;

    if (!$done) {
        kill 'KILL', $t->{child};
        return -1;
    }

    $t->{pid} = $t->{child} = undef;

    return wantarray ? ($status >> 8, time() - $start) : $status >> 8;
}


sub ops { return $t->request('GET', $_[0], port => $t->port('PORT1')) }

sub ready {
    local $ENV{OPS_PORT} = $t->port('PORT1');
    return system("$SD::TOP/docker/ready 2>/dev/null") == 0;
}

# when it is up, nginx's own process is what a test that dies leaves behind

sub up {
    my $up = wait_for { ready() };

    ok($up, 'ready') or diag($t->log(), slurp("$t->{dir}/stdout"));
    chomp($t->{pid} = slurp("$t->{dir}/sd/nginx.pid")) if $up;
}

sub stream {
    my $r = $t->post('/generate', { %small, @_ }, Accept => $mixed);

    while (my $p = $r->part()) {
        return $r if $p->{event} eq 'preview';
    }

    die 'no preview: ' . $t->log();
}


serve(SD_QUEUE => 7, SD_SLOTS => 3, SD_MAX_STEPS => 1000,
      SD_WEB_SERVICE_HOST => '10.0.0.1', SD_PORT => 'tcp://10.0.0.1:80',
      SD_PORT_80_TCP_PORT => '80', SD_CORS => '');

up();

is($t->get('/ping')->status(), 200, '/ping');
is(ops('/readyz')->status(), 200, '/readyz');
is(ops('/livez')->status(), 200, '/livez');
like(ops('/metrics')->body(), qr/^sd_ready 1$/m, '/metrics');
is($t->get($_)->status(), 404, "no $_ on the public port")
    for qw{ /status /metrics /readyz };
is($t->get('/')->status(), 200, 'a page');

my $status = json_decode(ops('/status')->body());
is($status->{queue}{limit}, 7, 'SD_QUEUE is sd_queue');
is($status->{slots}, 3, 'SD_SLOTS is sd_slots');


# as SageMaker asks: no Accept, and pages of pictures

my $page = { prompt => 'a red house', parameters => { num_inference_steps => 6,
             width => 64, height => 64, seed => 7, num_interim_images => 3,
             starting_step => 0 } };

my $first = json_decode($t->request('POST', '/invocations',
                                    body => json_encode($page))->body());
is($first->{step}, 3, '/invocations: a page');

$page->{parameters}{starting_step} = 3;
$page->{parameters}{latents} = $first->{latents};

my $second = json_decode($t->request('POST', '/invocations',
                                     body => json_encode($page))->body());
is($second->{step}, 6, '/invocations: the next');
is(picture_size(decode_base64($second->{images}[-1])), 'jpeg 64x64',
   'a picture');

my $stream = $t->post('/invocations', { %small }, Accept => $mixed);
my @events = map { $_->{event} } $stream->parts();
is($events[-1], 'final', '/invocations: a stream, where one is asked for');
cmp_ok(scalar @events, '>', 2, 'of what happens');
is($t->post('/stream', { %small })->status(), 404, 'by no other name');


# /ping has two seconds, whatever the load; the slots are full, and the queue

my @busy = map { stream(steps => 1000, seed => $_) } 1 .. 3;
push @busy, map { $t->post('/generate', { %small, steps => 1000 },
                           Accept => $mixed) } 1 .. 7;

ok((wait_for { json_decode(ops('/status')->body())->{queue}{waiting} == 7 }),
   'a full queue');

my $full = $t->post('/generate', { %small });
is($full->status(), 503, 'the next one is told');
like($full->header('Retry-After'), qr/^\d+$/, 'when to come back');

my $slowest = 0;

for (1 .. 20) {
    my $start = time();
    is($t->get('/ping')->status(), 200, 'a ping under load');
    $slowest = time() - $start if time() - $start > $slowest;
}

cmp_ok($slowest, '<', 2, sprintf 'the slowest took %.3f s', $slowest);

$_->close() for @busy;


# a reload by HUP

my $pid = $status->{pid};
kill 'HUP', $t->{child};
ok((wait_for { my $s = eval { json_decode(ops('/status')->body()) };
               $s && $s->{pid} != $pid }), 'HUP reloads');
ok((wait_for { ready() }), 'ready again');


# TERM: what runs is finished, nobody else is let in, and the end is a good one

my $alone = $t->post('/generate', { %small, steps => 60 })->body();
my $r = stream(steps => 60);

kill 'TERM', $t->{child};

ok((wait_for { !eval { $t->get('/ping')->status() } }), 'TERM: no new ones');

my @parts = $r->parts();
is($parts[-1]{event}, 'final', 'TERM: what runs is finished');
same($parts[-1]{body}, $alone, 'TERM: with the same bytes');
ok($r->complete(), 'TERM: whole');

is(scalar(ended()), 0, 'TERM: the exit status is 0');

my @log = map { json_decode($_) } split /\n/, slurp("$t->{dir}/stdout");
ok((grep { $_->{uri} eq '/invocations' && $_->{status} == 200 } @log),
   'the access log');

$t->stop();


# QUIT, which is STOPSIGNAL; what does not end in time is handed over

serve(SD_DRAIN_TIMEOUT => '1s', SD_MAX_STEPS => 1000);
up();

$r = stream(steps => 1000, width => 256, height => 256);
kill 'QUIT', $t->{child};

@parts = $r->parts();
is($parts[-1]{event}, 'handoff', 'QUIT: handed over');
is((grep { $_->{event} eq 'latent' } @parts)[-1]{step}, $parts[-1]{step},
   'QUIT: with its state');
is(scalar(ended()), 0, 'QUIT: the exit status is 0');

$t->stop();


# TERM before nginx is there to hear it

for (1 .. 5) {
    serve();
    select undef, undef, undef, 0.01 * $_;
    kill 'TERM', $t->{child};

    my $rc = ended();
    ok($rc == 0 || $rc == 143, "TERM at once: it ends ($rc)");
    ok(!eval { $t->get('/ping') }, 'TERM at once: nothing is left');
}


# what cannot start says why, and ends

serve(SD_QUEUES => 7);
isnt(scalar(ended()), 0, 'an unknown directive');
like($t->log(), qr/unknown directive "sd_queues"/, 'is named');

serve(SD_QUEUE => 'many');
isnt(scalar(ended()), 0, 'a bad value');
like($t->log(), qr/"sd_queue"|invalid number/, 'is named');

my $empty = SD->new(conf => '');
serve(SM_MODEL_DIR => $empty->{dir});
isnt(scalar(ended()), 0, 'a model that is none');
like($t->log(), qr/\Q$empty->{dir}\E/, 'is named');

done_testing();
