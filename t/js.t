#!/usr/bin/perl

# html/sd.js: the parser and the client, in Chromium, without a server.

use warnings;
use strict;

use FindBin;

chdir "$FindBin::Bin/.." or die "$!";

my $build = $ENV{SD_BUILD} // 'build';

system('t/venv.sh') == 0
    or die "cannot make $build/venv: python3-venv or PyPI is missing\n";

exec "$build/venv/bin/python", 't/browser.py', 'unit';
