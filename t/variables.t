#!/usr/bin/perl

# $sd_* in the access log.

use warnings;
use strict;

use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $t = SD->new(http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    sd_slots 1;
    sd_queue 0;
END
        location = /generate { sd_generate; }
        location = /other { return 204; }
END

$t->start();

my %small = (prompt => 'a secret', width => 64, height => 64, steps => 3,
             seed => 7);
my %long = (%small, steps => 1000, width => 256, height => 256);


# the log's next line

sub line {
    our $seen //= 0;
    my @lines;

    wait_for { @lines = $t->access(); @lines > $seen } 10;

    return $lines[$seen++] // '';
}


my $time = qr/\d+\.\d{3}/;

my $r = $t->post('/generate', { %small });
$r->body();
my $id = $r->header('X-Request-Id');

like(line(), qr{^POST\ /generate\ 200\ ok\ 3/3\ seed=7\ queue=$time
                \ time=$time\ model=model\ id=$id$}x, 'a picture');

$r = $t->post('/generate', { %small }, Accept => 'multipart/mixed');
$r->body();
like(line(), qr{ 200 ok 3/3 seed=7 }, 'a progressive one');

$t->post('/generate', { })->body();
like(line(), qr{ 400 rejected 0/0 }, 'a bad request');

$t->post('/generate', { %long, timeout => 0.3 })->body();
like(line(), qr{ 504 timeout \d+/1000 }, 'a timeout');

$t->request('GET', '/other')->body();
like(line(), qr{^GET /other 204 - -/- seed=- queue=- time=- model=- },
    'another location');

$r = $t->post('/generate', { %long }, Accept => 'multipart/mixed');

while (my $p = $r->part()) {
    last if $p->{event} eq 'preview';
}

$t->post('/generate', { %small })->body();
like(line(), qr{ 503 rejected }, 'no room in the queue');

$r->close();
like(line(), qr{ 200 cancelled [1-9]\d*/1000 seed=7 queue=$time time=$time },
    'a client that went away');

unlike(slurp("$t->{dir}/access.log"), qr/secret/, 'no prompt in the log');
unlike($t->log(), qr/secret/, 'nor in the error log');

$t->stop();

done_testing();
