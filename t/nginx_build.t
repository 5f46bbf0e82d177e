#!/usr/bin/perl

# nginx's own road: ./configure --add-dynamic-module in the source tree that
# Debian's nginx-dev has, from a clean copy of ours, and nothing before it.

use warnings;
use strict;

use Cwd qw/ abs_path /;
use File::Temp qw/ tempdir /;
use FindBin;
use Test::More;

use lib "$FindBin::Bin/lib";

use SD;

my $source = '/usr/share/nginx/src';

plan(skip_all => "no $source") unless -f "$source/conf_flags";
plan(skip_all => 'it is of a build of its own') if $SD::SANITIZED ne '';

my $dir = abs_path(tempdir('sd-test-XXXXXX', TMPDIR => 1, CLEANUP => 1));

delete @ENV{qw/ MAKEFLAGS MAKELEVEL MFLAGS BUILD SD_LIB SANITIZE /};


sub run {
    my ($name, $command) = @_;

    my $out = `bash -c 'exec 2>&1; $command'`;
    is($? >> 8, 0, $name) or diag $out;
}


run('a clean copy', "mkdir $dir/ours && cd $SD::TOP && cp -r config "
    . "config.make Makefile ngx_http_sd* src $dir/ours");

run('configure', "cd $source && . ./conf_flags && ./configure "
    . "\"\${NGX_CONF_FLAGS[@]}\" --builddir=$dir/objs "
    . "--add-dynamic-module=$dir/ours");

run('make', "make -j2 -C $source -f $dir/objs/Makefile modules");

ok(-f "$dir/objs/ngx_http_sd_module.so", 'the module');

open my $f, '>', "$dir/nginx.conf" or die "$!";
print $f <<"END";
load_module $dir/objs/ngx_http_sd_module.so;
pid $dir/nginx.pid;
events { }
http { sd_model $SD::MODEL; server { location / { sd_generate; } } }
END
close $f;

my $out = `$SD::NGINX -t -e $dir/error.log -c $dir/nginx.conf 2>&1`;
is($?, 0, 'nginx takes it') or diag $out;

done_testing();
