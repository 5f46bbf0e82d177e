package SD;

# An nginx with the module in it, in a directory of its own, for one test.
# Core Perl only.
#
#     my $t = SD->new(http => '...', server => '...', main => '...');
#     $t->start();                      # and wait until /ping is 200
#     my $r = $t->post('/generate', { prompt => 'a hill', steps => 2 });
#     $t->stop();                       # [alert] in the log is a failed test
#
# In the texts of configuration, %%PORT%%, %%PORT1%% ... are free ports,
# %%DIR%% is the directory, %%MODEL%% the embedded model, %%TOP%% the sources.

use warnings;
use strict;

use Cwd qw/ abs_path /;
use Digest::MD5 qw/ md5_hex /;
use File::Basename qw/ dirname /;
use File::Temp qw/ tempdir /;
use IO::Socket::INET;
use JSON::PP ();
use POSIX qw/ :sys_wait_h /;
use Test::More;
use Time::HiRes qw/ time /;

use SD::Stream;

use parent 'Exporter';
our @EXPORT = qw/ wait_for slurp json_decode json_encode picture_size
                  same differ /;

our $TOP = abs_path(dirname(__FILE__) . '/../..');
our $BUILD = abs_path($ENV{SD_BUILD} // "$TOP/build");
our $NGINX = $ENV{TEST_NGINX_BINARY} // '/usr/sbin/nginx';
our $MODEL = "$TOP/model";

# SD_SANITIZED=address, thread: the module is built so, nginx is not; what it
# wants is loaded in front of nginx, and reports go into files that stop() finds

our $SANITIZED = $ENV{SD_SANITIZED} // '';
our $RUNTIME = '';

if ($SANITIZED ne '') {
    my $name = { address => 'libasan.so', thread => 'libtsan.so' }->{$SANITIZED}
        or die "no sanitizer \"$SANITIZED\"\n";
    chomp($RUNTIME = `gcc -print-file-name=$name`);
}

my $json = JSON::PP->new->canonical->allow_nonref;

sub json_decode { return $json->decode($_[0]) }
sub json_encode { return $json->encode($_[0]) }


sub slurp {
    my ($path) = @_;

    open my $f, '<:raw', $path or return '';
    local $/;
    return scalar <$f> // '';
}


# is() and isnt() for bytes that nobody wants to see on a terminal

sub summary {
    my ($data) = @_;

    return defined $data ? length($data) . ' bytes ' . md5_hex($data)
                         : 'nothing';
}

sub same {
    my ($got, $expected, $name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is(summary($got), summary($expected), $name);
}

sub differ {
    my ($got, $expected, $name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;
    isnt(summary($got), summary($expected), $name);
}


# "jpeg 64x64", "png 64x64", or ""

sub picture_size {
    my ($data) = @_;

    if ($data =~ /^\x89PNG\r\n\x1a\n....IHDR(.{8})/s) {
        return sprintf 'png %dx%d', unpack('NN', $1);
    }

    return '' unless $data =~ /^\xff\xd8.*\xff\xd9$/s;

    for (my $i = 2; $i + 9 < length $data; ) {
        my ($ff, $marker, $size, $p, $h, $w) =
            unpack 'CCnCnn', substr($data, $i, 9);

        return '' if $ff != 0xff;
        return "jpeg ${w}x$h" if $marker =~ /^(?:192|193|194)$/;

        $i += 2 + $size;
    }

    return '';
}


# waits for a condition, not for a time; its value, or nothing

sub wait_for(&;$) {
    my ($condition, $seconds) = @_;

    my $end = time() + ($seconds // 60);

    while (time() < $end) {
        my $v = $condition->();
        return $v if $v;
        select undef, undef, undef, 0.01;
    }

    return;
}


# ports that nobody listens on; the lock keeps tests that run at the same time
# from choosing the same

sub free_port {
    my ($self) = @_;

    our $next //= 18100 + $$ % 80;

    for (1 .. 800) {
        my $port = 18100 + ($next++ - 18100) % 800;

        my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1',
            LocalPort => $port, Listen => 1, ReuseAddr => 0) or next;

        close $s;
        return $port;
    }

    die "no free port\n";
}


# main, events, http, server, servers: parts of the configuration; or conf: all of it

sub new {
    my ($class, %o) = @_;

    my $self = bless { dir => tempdir('sd-test-XXXXXX', TMPDIR => 1,
                                      CLEANUP => 1),
                       ports => {}, pid => undef, owner => $$ }, $class;

    mkdir "$self->{dir}/tmp";
    chmod 0755, $self->{dir};

    $self->configure(%o);

    return $self;
}


sub configure {
    my ($self, %o) = @_;

    my $user = $o{main} && $o{main} =~ /^\s*user\s/m || $> != 0
               ? '' : 'user root;';

    my $workers = $o{main} && $o{main} =~ /worker_processes/ ? ''
                  : 'worker_processes 1;';

    my $env = $SANITIZED eq '' ? ''
              : 'env LD_PRELOAD; env ASAN_OPTIONS; env TSAN_OPTIONS; '
                . 'env UBSAN_OPTIONS;';

    my $conf = $o{conf} // <<"END";
$user
$workers
$env
load_module $BUILD/ngx_http_sd_module.so;
pid %%DIR%%/nginx.pid;
error_log %%DIR%%/error.log info;
${\($o{main} // '')}
events { ${\($o{events} // 'worker_connections 256;')} }
http {
    log_format sd '\$request_method \$uri \$status \$sd_status \$sd_step/\$sd_steps '
                  'seed=\$sd_seed queue=\$sd_queue_time time=\$sd_time '
                  'model=\$sd_model id=\$request_id';
    access_log %%DIR%%/access.log sd;
    client_body_temp_path %%DIR%%/tmp/body;
    proxy_temp_path %%DIR%%/tmp/proxy;
    fastcgi_temp_path %%DIR%%/tmp/fastcgi;
    uwsgi_temp_path %%DIR%%/tmp/uwsgi;
    scgi_temp_path %%DIR%%/tmp/scgi;
${\($o{http} // "    sd_model %%MODEL%%;\n")}
    server {
        listen 127.0.0.1:%%PORT%%;
        location = /ping { sd_ready; access_log off; }
        location = /status { sd_status; access_log off; }
${\($o{server} // '')}
    }
${\($o{servers} // '')}
}
END

    $conf =~ s/%%(PORT\d*)%%/$self->port($1)/ge;
    $conf =~ s/%%DIR%%/$self->{dir}/g;
    $conf =~ s/%%MODEL%%/$MODEL/g;
    $conf =~ s/%%TOP%%/$TOP/g;

    open my $f, '>', "$self->{dir}/nginx.conf" or die "$!";
    print $f $conf;
    close $f;

    return $self;
}


sub port {
    my ($self, $name) = @_;

    return $self->{ports}{$name // 'PORT'} //= $self->free_port();
}


# what nginx wants in its environment; reports go into files sanitizer.* there

sub sanitized {
    my ($dir) = @_;

    return () if $SANITIZED eq '';

    my %options = (
        ASAN => 'detect_leaks=0',
        TSAN => "suppressions=$TOP/t/lib/tsan:halt_on_error=0:exitcode=0",
        UBSAN => 'print_stacktrace=1',
    );

    return (LD_PRELOAD => $RUNTIME, map {
        ("${_}_OPTIONS" => join ':', $options{$_}, "log_path=$dir/sanitizer",
                                $ENV{"${_}_OPTIONS"} // ())
    } keys %options);
}


sub run {
    my ($self, @args) = @_;

    my $d = $self->{dir};

    open STDOUT, '>', "$d/output";
    open STDERR, '>&', \*STDOUT;

    %ENV = (%ENV, sanitized($d));

    exec $NGINX, '-p', $d, '-c', "$d/nginx.conf", '-e', "$d/error.log", @args;
    exit 127;
}


sub nginx {
    my ($self, @args) = @_;

    my $pid = fork() // die "fork: $!";

    $self->run(@args) if $pid == 0;

    waitpid $pid, 0;

    return ($? >> 8, slurp("$self->{dir}/output"));
}


# `nginx -t`: what it says, and how many seconds of the processor it took

sub check {
    my ($self) = @_;

    my (undef, undef, @start) = times;
    my ($rc, $out) = $self->nginx('-t');
    my (undef, undef, @end) = times;

    return ($rc, $out, $end[0] + $end[1] - $start[0] - $start[1]);
}


# ready => 0: do not wait for the model

sub start {
    my ($self, %o) = @_;

    unlink "$self->{dir}/nginx.pid";

    if ($o{foreground}) {
        my $pid = fork() // die "fork: $!";

        $self->run('-g', $o{foreground}) if $pid == 0;

        $self->{child} = $pid;

    } else {
        my ($rc, $out) = $self->nginx();
        $rc == 0 or die "nginx did not start: $out\n";
    }

    $self->{pid} = wait_for { slurp("$self->{dir}/nginx.pid") }
        or die "no nginx.pid: " . slurp("$self->{dir}/output") . "\n";
    chomp $self->{pid};

    return $self if defined $o{ready} && !$o{ready};

    my $status;

    wait_for {
        $status = $self->get('/ping');
        $status->status() == 200 || $status->body() =~ /"failed"/;
    } 120;

    $status->status() == 200
        or die "the model does not become ready: "
               . $self->get('/status')->body() . $self->log() . "\n";

    return $self;
}


sub signal {
    my ($self, $signal) = @_;

    kill $signal, $self->{pid} or die "kill: $!\n";
}


# how many seconds it took to end after a signal

sub ended {
    my ($self, $seconds) = @_;

    my $start = time();

    my $done = wait_for {
        if ($self->{child}) {
            return waitpid($self->{child}, WNOHANG) != 0;
        }

        return !-e "$self->{dir}/nginx.pid";
    } $seconds;

    return unless $done;

    # the pid file goes before the last worker's bytes do not matter any more

    $self->{pid} = undef;
    $self->{child} = undef;

    return time() - $start;
}


sub workers {
    my ($self) = @_;

    my $pid = $self->{pid};

    my @pids = map { m{/proc/(\d+)/} ? $1 : () }
               grep { slurp($_) =~ /^\d+ \(.*?\) [^Z] $pid / }
               glob '/proc/*/stat';

    return @pids;
}


sub log {
    my ($self) = @_;

    return slurp("$self->{dir}/error.log");
}


sub access {
    my ($self) = @_;

    return split /\n/, slurp("$self->{dir}/access.log");
}


# ends nginx and looks for what must never be in its log; except: a pattern of
# what a test has provoked itself

sub stop {
    my ($self, %o) = @_;

    if ($self->{pid}) {
        $self->signal($o{signal} // 'QUIT');

        if (!defined $self->ended(30)) {
            fail('nginx ends');
            kill 'KILL', $self->{pid}, $self->workers();
            waitpid $self->{child}, 0 if $self->{child};
            $self->{pid} = undef;
        }
    }

    my @bad = grep { /\[(alert|emerg|crit)\]/ } split /\n/, $self->log();
    @bad = grep { $_ !~ $o{except} } @bad if $o{except};

    is(join("\n", @bad), '', 'no alerts in the log');

    my @reports = map { slurp($_) } glob "$self->{dir}/sanitizer.*";

    is(join("\n", @reports), '', 'no report of the sanitizer')
        if $SANITIZED ne '';
}


sub DESTROY {
    my ($self) = @_;

    return unless $self->{pid} && $self->{owner} == $$;

    local $?;
    kill 'KILL', $self->workers(), $self->{pid};
    waitpid $self->{child}, 0 if $self->{child};
}


# requests; each gives an SD::Stream, whose status(), header() and body() wait

sub request {
    my ($self, $method, $uri, %o) = @_;

    return SD::Stream->new(port => $o{port} // $self->port(),
        method => $method, uri => $uri, headers => $o{headers},
        body => $o{body});
}


sub get {
    my ($self, $uri, %headers) = @_;

    return $self->request('GET', $uri, headers => \%headers);
}


# body: a string, or what becomes JSON

sub post {
    my ($self, $uri, $body, %headers) = @_;

    $headers{'Content-Type'} //= 'application/json';
    $body = json_encode($body) if ref $body;

    return $self->request('POST', $uri, headers => \%headers, body => $body);
}


# a stream that a deadline ends: on a busy machine it may be over before the
# stream has begun, or is at $step, and the next one has twice the time

sub late {
    my ($self, $uri, $body, $step) = @_;

    for (my $s = 0.5; $s < 100; $s *= 2) {
        my $r = $self->post($uri, { %$body, timeout => $s },
                            Accept => 'multipart/mixed');
        my @parts = $r->status() == 200 ? $r->parts() : ();

        return ($r, @parts) if @parts && ($parts[-1]{step} // 0) >= ($step // 0);
    }

    return ();
}


# what sd_status says

sub status {
    my ($self) = @_;

    return json_decode($self->get('/status')->body());
}


1;
