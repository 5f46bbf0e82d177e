#!/usr/bin/perl

# The demo's client: one progressive request to /generate, a line for each
# event as it arrives, and the pictures into a directory.
#
#     t/demo.pl http://127.0.0.1:8080 build/demo

use warnings;
use strict;

use JSON::PP;
use Time::HiRes qw/ time /;

use SD::Stream;

my ($url, $dir) = @ARGV;
my ($host, $port) = ($url // '') =~ m{^http://([^:/]+):(\d+)$}
    or die "usage: t/demo.pl http://HOST:PORT DIRECTORY\n";

mkdir $dir;
unlink glob "$dir/*.jpg $dir/*.safetensors";

my $prompt = 'a red house by a lake at sunset';

print "\nPOST $url/generate  \"$prompt\"\n\n";
printf "%8s  %-10s %7s %9s\n", 'seconds', 'event', 'step', 'bytes';

# the engine takes the request while it still loads the model

my $s = SD::Stream->new(host => $host, port => $port, method => 'POST',
    uri => '/generate',
    headers => { 'Accept' => 'multipart/mixed',
                 'Content-Type' => 'application/json' },
    body => encode_json({ prompt => $prompt, num_inference_steps => 20,
                          seed => 7 }));

$s->status() == 200 or die $s->status() . ': ' . $s->body();

my $final;

while (my $p = $s->part()) {

    printf "%8.2f  %-10s %7s %9d", $p->{time}, $p->{event},
           $p->{steps} ? "$p->{step}/$p->{steps}" : '', length $p->{body};

    my $name = $p->{event} eq 'preview' ? sprintf('preview-%02d.jpg', $p->{step})
               : $p->{event} eq 'latent' ? 'latest.safetensors'
               : $p->{event} eq 'final' ? 'final.jpg' : undef;

    if ($name) {
        open my $f, '>:raw', "$dir/$name" or die "$dir/$name: $!\n";
        print $f $p->{body};
        close $f or die "$dir/$name: $!\n";

        print "  $dir/$name";
    }

    print "  $p->{body}" if $p->{event} eq 'error';
    print "\n";

    $final = $name if $p->{event} eq 'final';
}

$final && $s->closed() or die "\nno picture: the response was cut\n";

print "\nthe picture is $dir/$final; the page is $url/\n";

printf "%.0f seconds from make to picture\n", time() - $ENV{SD_START}
    if $ENV{SD_START};
