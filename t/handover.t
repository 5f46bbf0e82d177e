#!/usr/bin/perl

# Two servers behind a balancer, one of which goes away, killed or in good
# order, or its engine alone, in the middle of twenty streams: html/sd.js
# finishes all of them at the other one, or where it was, with the bytes of
# undisturbed runs.  And a picture that takes longer than a request may.

use warnings;
use strict;

use Digest::MD5 qw/ md5_hex /;
use File::Copy qw/ copy /;
use File::Temp qw/ tempdir /;
use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $count = 20;
my %picture = (prompt => 'a red house', width => 64, height => 64, steps => 40,
               guidance_scale => 1);

my $dir = tempdir('sd-test-XXXXXX', TMPDIR => 1, CLEANUP => 1);
copy("$SD::TOP/html/sd.js", "$dir/sd.mjs") or die "copy: $!";


sub server {
    my $t = SD->new(main => 'worker_processes 2;', http => <<'END',
    sd_model          %%MODEL%%;
    sd_slots          20;
    sd_max_steps      1000;
    sd_drain_timeout  1ms;
END
        server => <<'END');
        location = /generate { sd_generate; client_max_body_size 1m; }
        location = /short {
            sd_generate; sd_timeout 1s; client_max_body_size 1m;
        }
END

    return $t->start();
}


# the client: a picture for each seed below a number

sub pictures {
    my ($server, $uri, $number, %request) = @_;

    open my $node, '-|', 'node', "$FindBin::Bin/handover.mjs", "$dir/sd.mjs",
         'http://127.0.0.1:' . $server->port() . $uri, $number,
         json_encode(\%request)
        or die "cannot run node: $!\n";

    return $node;
}


# by proxy_pass alone: what is cut is the client's to mend, as only it has the
# state; what cannot connect, or is refused, goes to the other one

sub balancer {
    my ($one, $two) = map { '127.0.0.1:' . $_->port() } @_;

    return SD->new(conf => <<"END")->start();
pid %%DIR%%/nginx.pid;
error_log %%DIR%%/error.log info;
events { worker_connections 256; }
http {
    access_log %%DIR%%/access.log;
    client_body_temp_path %%DIR%%/tmp/body;
    proxy_temp_path %%DIR%%/tmp/proxy;
    fastcgi_temp_path %%DIR%%/tmp/fastcgi;
    uwsgi_temp_path %%DIR%%/tmp/uwsgi;
    scgi_temp_path %%DIR%%/tmp/scgi;

    upstream pictures {
        server $one fail_timeout=1s;
        server $two fail_timeout=1s;
    }

    server {
        listen 127.0.0.1:%%PORT%%;

        location = /ping { return 200; }

        location = /generate {
            proxy_pass           http://pictures;
            proxy_http_version   1.1;
            proxy_buffering      off;
            proxy_next_upstream  error timeout http_502 http_503 non_idempotent;
            add_header           Server-Address \$upstream_addr;
        }
    }
}
END
}


# undisturbed

my $two = server();
my %alone;

for my $i (0 .. $count - 1) {
    my $r = $two->post('/generate', { %picture, seed => $i },
                       Accept => 'multipart/mixed');
    my @parts = $r->parts();

    $alone{$i} = md5_hex($parts[-1]{body});
}

is(scalar keys %{{ reverse %alone }}, $count, "$count pictures");


for my $how ('killed', 'QUIT', 'engine killed') {

    my $one = server();
    my $gone = '127.0.0.1:' . $one->port();
    my $balancer = balancer($one, $two);

    my $node = pictures($balancer, '/generate', $count, %picture);
    my (%has, %final, %resumed, %at, @thrown, @inexact);

    while (my $line = <$node>) {
        my $e = json_decode($line);
        my $i = $e->{i};

        if ($e->{type} eq 'latent' && !$has{$i}++ && keys %has == $count) {

            # all of them are in their middle

            if ($how eq 'killed') {
                kill 'KILL', $one->{pid}, $one->workers();
                $one->{pid} = undef;

            } elsif ($how eq 'QUIT') {
                $one->signal('QUIT');

            } else {
                kill 'KILL', $one->status()->{pid};
            }
        }

        $final{$i} = $e->{hash} if $e->{type} eq 'final';
        $resumed{$i} = $e->{step} if $e->{type} eq 'resume';
        $at{$i} //= $e->{servers}[0];

        push @thrown, $line if $e->{type} eq 'thrown';
        push @inexact, $line if $e->{inexact};
    }

    close $node;

    is($?, 0, "$how: the client came to its end");
    is("@thrown", '', "$how: nothing was thrown");
    is("@inexact", '', "$how: each went on exactly");
    is_deeply(\%final, \%alone, "$how: $count pictures, all the same");

    my @moved = grep { $at{$_} eq $gone } keys %at;

    cmp_ok(scalar @moved, '>=', $count / 4, "$how: many had begun there");
    is_deeply([ sort keys %resumed ], [ sort @moved ],
              "$how: those were gone on with, and no others");
    is(scalar(grep { !$_ } values %resumed), 0,
       "$how: from a state, not from the beginning");

    if ($how eq 'QUIT') {
        is(scalar(grep { m{ /generate 200 handoff } } $one->access()),
           scalar @moved, "$how: each was handed over by the one that went");
        ok(defined $one->ended(30), "$how: which ended then");
    }

    $one->stop(except => qr/worker process \d+ exited on signal 9/)
        unless $how eq 'killed';

    $balancer->stop();
}


# a deadline: the rest is asked for, and asked for, until it is whole

my %long = (%picture, steps => 1000);
my $r = $two->post('/generate', { %long, seed => 0 },
                   Accept => 'multipart/mixed');
my $whole = md5_hex(($r->parts())[-1]{body});

my $node = pictures($two, '/short', 1, %long);
my @events = map { json_decode($_) } <$node>;

close $node;

cmp_ok(scalar(grep { $_->{type} eq 'resume' } @events), '>=', 1,
       'a deadline passes, and what is left is asked for');
is($events[-1]{type} . ' ' . ($events[-1]{hash} // $events[-1]{message}),
   "final $whole", 'the picture is the same');

$two->stop();

done_testing();
