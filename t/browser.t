#!/usr/bin/perl

# The page, in Chromium, against nginx with the module: see t/browser.py.

use warnings;
use strict;

use FindBin;
use lib "$FindBin::Bin/lib";
use File::Temp qw/ tempdir /;
use Test::More;

use SD;
use SD::Checkpoint;

chdir "$FindBin::Bin/.." or die "$!";

system('t/venv.sh') == 0
    or die "cannot make $SD::BUILD/venv: python3-venv or PyPI is missing\n";

$SD::MODEL = SD::Checkpoint::small(tempdir(CLEANUP => 1) . '/model')
    if $SD::SANITIZED;

my $t = SD->new(main => 'worker_processes 2;', server => <<'END',
        root   %%TOP%%/html;
        index  index.html;

        types {
            text/html        html;
            text/css         css;
            text/javascript  js;
            image/svg+xml    svg;
        }

        add_header  Content-Security-Policy
                    "default-src 'self'; img-src 'self' blob:";

        location = /generate { sd_generate; }
END
    servers => <<'END');
    # each worker with a socket of its own, so that both get connections
    server {
        listen 127.0.0.1:%%PORT1%% reuseport;
        root %%TOP%%/html;
        types { text/html html; text/javascript js; }
        location = /status { sd_status; }
        location = /generate { sd_generate; add_header Worker $pid; }
    }
END

$t->start();

open my $python, '-|', "$SD::BUILD/venv/bin/python", 't/browser.py', 'page',
     'http://127.0.0.1:' . $t->port() . '/', "$SD::BUILD/shots",
     'http://127.0.0.1:' . $t->port('PORT1') . '/'
    or die "cannot run python: $!\n";

# its TAP, said again by this program, which has a test more

my $plan;

while (my $line = <$python>) {
    if ($line =~ /^(not )?ok \d+ - (.*)$/) {
        ok(!$1, $2);

    } elsif ($line =~ /^# ?(.*)$/) {
        diag($1);

    } elsif ($line =~ /^1\.\.(\d+)$/) {
        $plan = $1;
    }
}

close $python;

is(Test::More->builder->current_test, $plan, 'the browser came to the end');

# the test has killed workers itself

$t->stop(except => qr/worker process \d+ exited on signal 9/);

done_testing();
