#!/usr/bin/perl

# conf/log.conf: each request is a JSON object on a line, whatever becomes of
# it.

use warnings;
use strict;

use FindBin;
use JSON::PP ();
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $t = SD->new(http => <<'END', server => <<'END');
    sd_model %%MODEL%%;
    sd_max_steps 1000;
    include %%TOP%%/conf/log.conf;
END
        access_log %%DIR%%/json.log sd_json;
        location = /generate { sd_generate; sd_get on; }
        location / { return 204; }
END

$t->start();

# text, as a collector reads it; what is not UTF-8 dies

my $json = JSON::PP->new->utf8;
my $seen = 0;

sub line {
    my ($name) = @_;
    my @lines;

    wait_for {
        @lines = slurp("$t->{dir}/json.log") =~ /^(.*)\n/mg;
        @lines > $seen;
    };

    my $line = eval { $json->decode($lines[$seen++] // '') };

    is(ref $line, 'HASH', "$name: a JSON object") or diag $@, $lines[-1];
    return $line || {};
}


# the values, as they stand there: numbers without quotes

sub has {
    my ($line, $name, %values) = @_;

    is(JSON::PP->new->allow_nonref->encode($line->{$_}), $values{$_},
       "$name: $_")
        for sort keys %values;
}


my %small = (prompt => 'a secret', width => 64, height => 64, steps => 3,
             seed => 7);

my $r = $t->post('/generate', { %small });
my $size = length $r->body();
my $line = line('a picture');
has($line, 'a picture', status => 200, bytes => $size, step => 3, steps => 3,
    seed => 7, result => '"ok"', model => '"model"', method => '"POST"',
    uri => '"/generate"', client => '"127.0.0.1"',
    id => '"' . $r->header('X-Request-Id') . '"');
like($line->{time}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d$/,
     'a picture: time');
cmp_ok($line->{sd_seconds}, '>', 0, 'a picture: sd_seconds');
cmp_ok($line->{queue_seconds}, '<=', $line->{sd_seconds},
       'a picture: queue_seconds');
is(join(' ', sort keys %$line), 'bytes client id method model queue_seconds '
   . 'result sd_seconds seconds seed status step steps time uri',
   'and nothing else');

$t->get('/generate?prompt=a+secret&steps=2&width=64&height=64&seed=5')->body();
has(line('a GET'), 'a GET', status => 200, step => 2, seed => 5,
    uri => '"/generate"');

$t->post('/generate', { %small, width => 65 })->body();
has(line('a wrong one'), 'a wrong one', status => 400, step => 0, steps => 0,
    result => '"rejected"');

$t->get('/other')->body();
has(line('another location'), 'another location', status => 204,
    step => 'null', steps => 'null', seed => 'null', queue_seconds => 'null',
    sd_seconds => 'null', result => '""', model => '""');

$r = $t->post('/generate', { %small, steps => 1000 },
              Accept => 'multipart/mixed');

while (my $p = $r->part()) {
    last if $p->{event} eq 'preview';
}

$r->close();
has(line('one that leaves'), 'one that leaves', status => 200,
    result => '"cancelled"', steps => 1000);

# paths that are not for JSON

for ([ '/%22%5c%0a%00"\\', '"?"' ], [ "/\xff%ff", '"?"' ],
     [ '/a%22b', '"/a\"b"' ], [ '/%c3%a9', '"?"' ])
{
    my ($uri, $logged) = @$_;

    my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                  PeerPort => $t->port()) or die "$!";
    print $s "GET $uri HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
             . "User-Agent: \"\xfe\r\n\r\n";
    1 while sysread $s, my $data, 4096;
    close $s;

    has(line($logged), $logged, $uri =~ /%00/ ? () : (uri => $logged));
}

# no request at all

my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                              PeerPort => $t->port()) or die "$!";
print $s "\x16\x03\x01\x02\x00\r\n\r\n";
1 while sysread $s, my $data, 4096;
close $s;
has(line('no HTTP'), 'no HTTP', status => 400, step => 'null');

unlike(slurp("$t->{dir}/json.log"), qr/secret/, 'no prompt in the log');

$t->stop();

done_testing();
