#!/usr/bin/perl

# nginx's own limits and authentication in front of sd_generate.

use warnings;
use strict;

use FindBin;
use MIME::Base64;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $t = SD->new(http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    limit_req_zone $binary_remote_addr zone=req:1m rate=1r/m;
    limit_conn_zone $binary_remote_addr zone=conn:1m;
    limit_req_status 429;
    limit_conn_status 429;
    include %%TOP%%/conf/errors.conf;
END
        error_page 429 502 /sd-error;
        location = /sd-error {
            internal;
            default_type application/json;
            add_header Retry-After $sd_error_retry always;
            return 200 $sd_error_json;
        }
        location = /generate { sd_generate; }
        location = /rate { sd_generate; limit_req zone=req burst=1 nodelay; }
        location = /share { sd_generate; limit_conn conn 1; }
        location = /private {
            sd_generate;
            auth_basic "pictures";
            auth_basic_user_file %%DIR%%/htpasswd;
        }
        location = /denied { sd_generate; deny all; }
END

open my $f, '>', "$t->{dir}/htpasswd" or die "$!";
print $f "painter:{PLAIN}brush\n";
close $f;

$t->start();

my %small = (prompt => 'a red house', width => 64, height => 64, steps => 1,
             seed => 7);
my %long = (%small, steps => 1000);


# limit_req

is($t->post('/rate', { %small })->status(), 200, 'the first request');
is($t->post('/rate', { %small })->status(), 200, 'one more');

my $r = $t->post('/rate', { %small });
is($r->status(), 429, 'one too many');
is($r->header('Retry-After'), 1, 'when to try again');
is(json_decode($r->body())->{error}{code}, 'rate_limit_exceeded', 'in JSON');


# limit_conn: a slot is held as long as the picture takes

my $long = $t->post('/share', { %long }, Accept => 'multipart/mixed');
is($long->status(), 200, 'one at a time');

is($long->part()->{event}, 'start', 'it runs');

$r = $t->post('/share', { %small });
is($r->status(), 429, 'a second is one too many');
is($r->header('Content-Type'), 'application/json', 'as JSON');
is(json_decode($r->body())->{error}{code}, 'rate_limit_exceeded', 'its code');
is(json_decode($r->body())->{error}{type}, 'rate_limit_error', 'and type');
is($t->status()->{running}, 1, 'the first one still runs');

$long->close();

ok((wait_for { $t->post('/share', { %small })->status() == 200 } 10),
    'the next when the first has gone');


# authentication and access, before anything is read

my $jobs = $t->status()->{requests};

is($t->post('/private', { %small })->status(), 401, 'no password');
is($t->post('/private', { %small }, Authorization => 'Basic '
            . encode_base64('painter:pen', ''))->status(), 401, 'a wrong one');
is($t->post('/denied', { %small })->status(), 403, 'denied');

is_deeply($t->status()->{requests}, $jobs, 'the engine knows nothing of it');

is($t->post('/private', { %small }, Authorization => 'Basic '
            . encode_base64('painter:brush', ''))->status(), 200,
    'the right one');


# a client that does not read holds nobody up: its picture is finished while
# the bytes wait, and another's too

my $ok = $t->status()->{requests}{ok};

$r = $t->post('/generate', { %small, steps => 300, width => 128,
                             height => 128 }, Accept => 'multipart/mixed');
is($r->status(), 200, 'a client that does not read');

ok((wait_for { $t->status()->{running} == 0 } 600), 'its picture is made');
is($t->post('/generate', { %small })->status(), 200, 'and another one');

my @parts = $r->parts();
is($parts[-1]{event}, 'final', 'it is there when it reads');
ok($r->closed(), 'whole');
ok((wait_for { $t->status()->{requests}{ok} == $ok + 2 } 10), 'all is well');

$t->stop();

done_testing();
