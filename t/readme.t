#!/usr/bin/perl

# README.md: its examples run, its configurations are valid, its directives and
# variables are those that there are, its links lead somewhere.

use warnings;
use strict;

use FindBin;
use lib "$FindBin::Bin/lib";
use File::Temp qw/ tempdir /;
use Test::More;

use SD;
use SD::Checkpoint;

my $readme = slurp("$SD::TOP/README.md");
my $dir = tempdir(CLEANUP => 1);
my $path = $SD::BUILD;

if ($SD::SANITIZED) {
    $SD::MODEL = SD::Checkpoint::small("$dir/model");
    $path = "$dir/bin";

    mkdir $path;
    open my $f, '>', "$path/sd" or die "$!";
    print $f "#!/bin/sh\ntest \$1 = check || set -- \"\$@\" --model "
             . "$SD::MODEL\nexec $SD::BUILD/sd \"\$@\"\n";
    close $f;
    chmod 0755, "$path/sd";
}

my $t = SD->new(server => <<'END');
        location = /generate { sd_generate; sd_get on; }
        location = /invocations { sd_generate sagemaker; sd_pagination on; }
END

$t->start();

$ENV{PATH} = "$path:$ENV{PATH}";


# runs an example as a reader would, only with another port

sub example {
    my ($kind, $text, $name) = @_;

    my $port = $t->port();
    $text =~ s/127\.0\.0\.1:8080/127.0.0.1:$port/g;

    open my $f, '>', "$dir/example" or die "$!";
    print $f $text;
    close $f;

    my $command = $kind eq 'sh' ? 'bash -euo pipefail' : 'python3';
    my $output = `cd $dir && $command example 2>&1`;

    is($?, 0, $name) or diag($text, $output);

    for my $file ($text =~ /(?:-o |open\(")([\w.]+)/g) {
        my $bytes = slurp("$dir/$file");

        ok($file =~ /\.jpg$/ ? $bytes =~ /^\xff\xd8\xff.*\xff\xd9$/s
           : $file =~ /\.png$/ ? $bytes =~ /^\x89PNG.*IEND....$/s
           : $file =~ /\.json$/ ? ref json_decode($bytes)
           : $file =~ /\.parts$/ ? $bytes =~ /^--.*SD-Event: final.*--\r\n$/s
           : $bytes =~ /^event: image_generation\.completed$/m,
           "$file is what its name says");
    }
}


sub configuration {
    my ($text, $name) = @_;

    $text =~ s{modules/(ngx_http_sd_module\.so)}{$SD::BUILD/$1};
    $text =~ s{sd_model(\s+)\S+;}{sd_model$1%%MODEL%%;};
    $text =~ s{sd_cache_path(\s+)\S+;}{sd_cache_path$1%%DIR%%/cache;};
    $text =~ s{listen 80;}{listen 127.0.0.1:%%PORT%%;};

    $text = "load_module $SD::BUILD/ngx_http_sd_module.so;\n"
            . "events { }\nhttp {\n$text\n}\n"
        unless $text =~ /^http \{/m;

    my ($rc, $output) = SD->new(conf => "pid %%DIR%%/nginx.pid;\n$text")
                          ->check();

    is($rc, 0, $name) or diag($text, $output);
}


my %count;

while ($readme =~ /^```(\w+)\n(.*?)^```$/msg) {
    my ($kind, $text) = ($1, $2);
    my $name = "$kind " . ++$count{$kind};

    if ($kind eq 'nginx') {
        configuration($text, $name);

    } elsif ($kind eq 'sh' || $kind eq 'python') {
        example($kind, $text, $name);
    }
}

cmp_ok($count{$_} // 0, '>=', 2, "there are examples of $_")
    for qw/ sh python nginx /;


# the manual is complete, and nothing but

my $source = slurp("$SD::TOP/ngx_http_sd_module.c");

my ($commands) = $source =~ /ngx_http_sd_commands\[\] = \{(.*?)^\};/ms;
my ($variables) = $source =~ /ngx_http_sd_variables\[\] = \{(.*?)^\};/ms;

is_deeply([sort $readme =~ /^### (sd_\w+)$/mg],
          [sort $commands =~ /ngx_string\("(\w+)"\)/g], 'directives');
my %named = map { $_ => 1 } $readme =~ /`\$(sd_\w+)`/g;

is_deeply([sort keys %named],
          [sort $variables =~ /ngx_string\("(\w+)"\)/g], 'variables');

while ($readme =~ /^### (sd_\w+)\n\n(.*?)(?=^##)/msg) {
    my ($name, $text) = ($1, $2);

    like($text, qr/^\*\*syntax:\*\*\ `\Q$name\E.*;`\ \ \n
                    \*\*default:\*\*\ (?:-|`\Q$name\E\ .*;`)\ \ \n
                    \*\*context:\*\*\ [\w, ]+\n\n
                    \S/x, "$name: syntax, default, context and a paragraph");
}


# links

for my $file (qw/ README.md ARCHITECTURE.md /) {
    my $text = slurp("$SD::TOP/$file");
    my %heading = map { lc $_ => 1 } $text =~ /^#+ (.+)$/mg;

    my @broken = grep {
        /^#(.*)/ ? !$heading{$1 =~ s/-/ /gr} : !/^https?:/ && !-e "$SD::TOP/$_"
    } $text =~ /\]\(([^)\s]+)\)/g;

    is("@broken", '', "$file: every link leads somewhere");
}

$t->stop();

done_testing();
