package SD::Container;

# Dockerfiles where there is no Docker: reads one, and says of a file whether
# .dockerignore lets it in; builds and runs one in directories with chroot, as
# root, each RUN with namespaces of its own for mounts and processes.  What it
# does not know, it does not skip: it dies.
#
#     my $c = SD::Container->new('docker/Dockerfile.cpu');
#     $c->build($directory);                # and what Debian is made of, once
#     my $pid = $c->run({ PORT => 8080 });  # of what is process 1 in there
#
# {binds} are directories of this host that all steps see, {arg} values of ARG,
# and {files} what ADD finds at an address, by the file's name.

use warnings;
use strict;

use Cwd qw/ abs_path /;
use File::Find;
use Text::ParseWords;

use SD;


sub new {
    my ($class, $file) = @_;

    my $text = SD::slurp("$SD::TOP/$file") or die "$file: $!\n";
    my $self = bless { file => $file, stages => [], binds => {}, arg => {},
                       files => {} }, $class;

    $text =~ s/^\s*#.*\n//mg;
    $text =~ s/\\\n/ /g;

    for (split /\n/, $text) {
        my ($name, $rest) = /^\s*([A-Z]+)\s+(.*?)\s*$/ or next;

        if ($name eq 'FROM') {
            my ($from, $as) = $rest =~ /^(\S+)(?:\s+AS\s+(\S+))?$/
                or die "FROM $rest\n";

            push @{$self->{stages}},
                 { from => $from, name => $as // '', steps => [] };

        } else {
            push @{$self->{stages}[-1]{steps}}, [ $name, $rest ];
        }
    }

    return $self;
}


# the last stage's, or a stage's: what an instruction says

sub says {
    my ($self, $name) = @_;

    my @said = map { $_->[1] } grep { $_->[0] eq $name }
               @{$self->{stages}[-1]{steps}};

    return wantarray ? @said : $said[-1];
}


# of a path below the sources: whether it is in what a build sees

sub sees {
    my ($path) = @_;

    our @ignore;

    @ignore = map { my $no = s/^!//; my $p = quotemeta;
                    $p =~ s/\\\*/[^\/]*/g; [ qr/^$p(?:\/|$)/, !$no ] }
              grep { /^[^#\s]/ } split /\n/, SD::slurp("$SD::TOP/.dockerignore")
        unless @ignore;

    my $ignored = 0;

    for (@ignore) {
        $ignored = $_->[1] if $path =~ $_->[0];
    }

    return !$ignored;
}


# files that COPY means, each with its path below the destination

sub sources {
    my ($source) = @_;

    my @files;
    my $dir = $source eq '.' ? '' : "$source/";

    if (-f "$SD::TOP/$source") {
        return sees($source) ? [ $source, $source =~ s{.*/}{}r ] : ();
    }

    return unless -d "$SD::TOP/$source";

    find({ no_chdir => 1, wanted => sub {
        my $path = s{^\Q$SD::TOP\E/(?:\./)?}{}r;

        push @files, [ $path, $path =~ s/^\Q$dir\E//r ]
            if -f && sees($path);
    }, preprocess => sub {
        grep { $_ !~ /^(?:\.git|build)$/ } @_;
    } }, "$SD::TOP/$source");

    return @files;
}


sub shell {
    my ($self, $root, $env, $dir, @command) = @_;

    # of what is mounted nothing is left when the last process ends

    my $script = 'set -e; root=$1; shift;'
        . ' mount --make-rprivate /;'
        . ' mount -t proc proc "$root/proc";'
        . ' mount --rbind /dev "$root/dev";'
        . join('', map { " mkdir -p \"\$root$_\";"
                         . " mount --bind $self->{binds}{$_} \"\$root$_\";" }
                   sort keys %{$self->{binds}})
        . ' exec chroot "$root" env -i "$@"';

    return ('unshare', '--mount', '--pid', '--fork', '--kill-child',
            'bash', '-c', $script, 'bash', $root,
            'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
            'HOME=/root', (map { "$_=$env->{$_}" } sort keys %$env),
            'sh', '-c', 'cd "$1" && shift && exec "$@"', 'sh', $dir, @command);
}


sub copy {
    my ($self, $root, $dir, $rest) = @_;

    my $from = $rest =~ s/^--from=(\S+)\s+// ? $1 : undef;
    my @words = shellwords($rest);
    my $to = pop @words;

    my $target = $to =~ m{^/} ? "$root$to" : "$root$dir/$to";
    system('mkdir', '-p', $target) == 0 or die "mkdir $target\n";

    for my $source (@words) {
        if (defined $from) {
            system('cp', '-a', "$self->{roots}{$from}/$source/.", $target) == 0
                or die "cp $source\n";
            next;
        }

        my @files = sources($source) or die "COPY $source: no such file\n";

        for (@files) {
            my ($path, $name) = @$_;
            my $dirname = "$target/$name" =~ s{/[^/]*$}{}r;

            -d $dirname || system('mkdir', '-p', $dirname) == 0
                or die "mkdir $dirname\n";
            system('cp', '-p', "$SD::TOP/$path", "$target/$name") == 0
                or die "cp $path\n";
        }
    }
}


# a Debian in a directory, as in its image: no service is started by its package

sub debian {
    my ($work) = @_;

    my $root = "$work/debian";

    if (!-e "$root/etc/debian_version") {
        my $mirror = $ENV{DEBIAN_MIRROR} // 'http://deb.debian.org/debian';

        system("mkdir -p $work && rm -rf --one-file-system $root.new"
               . " && debootstrap --variant=minbase bookworm $root.new $mirror"
               . " && mv $root.new $root") == 0 or die "debootstrap\n";

        open my $f, '>', "$root/usr/sbin/policy-rc.d" or die "$!";
        print $f "#!/bin/sh\nexit 101\n";
        close $f;
        chmod 0755, "$root/usr/sbin/policy-rc.d";
    }

    system("cp /etc/resolv.conf /etc/hosts $root/etc/");

    return $root;
}


sub build {
    my ($self, $work) = @_;

    my $debian = debian($work);
    my $name = $self->{file} =~ s{.*\.}{}r;
    my %env;

    for my $stage (@{$self->{stages}}) {
        my $n = $self->{n}++ // 0;
        my $root = "$work/$name$n";
        my $from = $stage->{from} =~ /^debian:bookworm-slim$/
                   ? $debian : $self->{roots}{$stage->{from}}
            or die "FROM $stage->{from}\n";

        system('rm', '-rf', '--one-file-system', $root) == 0
            && system('cp', '-a', '--reflink=auto', $from, $root) == 0
            or die "cp $from\n";

        my $dir = '/';
        %env = %{$self->{envs}{$stage->{from}} // {}};

        for (@{$stage->{steps}}) {
            my ($name, $rest) = @$_;

            print "# $name $rest\n";

            if ($name eq 'RUN') {
                my @command = $self->shell($root, \%env, $dir, 'sh', '-c',
                                           $rest);

                system(@command) == 0 or die "RUN $rest: $?\n";

            } elsif ($name eq 'COPY') {
                $self->copy($root, $dir, $rest);

            } elsif ($name eq 'ADD') {
                my ($file, $to) = $rest =~ m{^https://\S*/(\S+)\s+(\S+/)$}
                    or die "ADD $rest\n";
                system('cp', $self->{files}{$file} // "no $file",
                       "$root$to$file")
                    == 0 or die "ADD $rest\n";

            } elsif ($name eq 'ARG') {
                my ($key, $value) = $rest =~ /^(\w+)="?(.*?)"?$/
                    or die "ARG $rest\n";
                $env{$key} = $self->{arg}{$key} // $value;

            } elsif ($name eq 'WORKDIR') {
                $dir = $rest;
                system('mkdir', '-p', "$root$dir") == 0 or die "mkdir $dir\n";

            } elsif ($name eq 'ENV') {
                my ($key, $value) = $rest =~ /^(\w+)="?(.*?)"?$/
                    or die "ENV $rest\n";
                $env{$key} = $value;

            } elsif ($name !~ /^(?:EXPOSE|STOPSIGNAL|HEALTHCHECK|CMD)$/) {
                die "$name: not known here\n";
            }
        }

        $self->{roots}{$n} = $self->{roots}{$stage->{name} || $n}
            = $self->{root} = $root;
        $self->{envs}{$stage->{name} || $n} = { %env };
    }

    $self->{env} = \%env;
}


# of CMD and HEALTHCHECK: the words of the command

sub command {
    my ($self, $name) = @_;

    my ($words) = $self->says($name) =~ /(\[.*\])$/ or die "$name\n";

    return @{SD::json_decode($words)};
}


sub exec_in {
    my ($self, $env, @command) = @_;

    return $self->shell($self->{root}, { %{$self->{env}}, %$env }, '/',
                        @command);
}


# as a user, root by default; its output is in $self->{output}, through a pipe
# that is this user's, as an engine's is

sub run {
    my ($self, $env, $user) = @_;

    $user //= 0;
    $self->{output} = "$self->{root}.output";

    my @user = $user ? ('setpriv', '--reuid', $user, '--regid', $user,
                        '--clear-groups') : ();
    my @command = $self->exec_in($env, @user, $self->command('CMD'));

    pipe my $out, my $in or die "pipe: $!";
    chown $user, $user, $in;

    my $outer = fork() // die "fork: $!";

    if ($outer == 0) {
        close $out;
        open STDOUT, '>&', $in or die "$!";
        open STDERR, '>&', $in or die "$!";
        exec @command;
        exit 127;
    }

    close $in;

    if (!($self->{log} = fork() // die "fork: $!")) {
        open STDIN, '<&', $out or die "$!";
        open STDOUT, '>', $self->{output} or die "$!";
        exec 'cat';
        exit 127;
    }

    $self->{outer} = $outer;

    # unshare's child is process 1; it takes signals once it has handlers

    return $self->{pid} = SD::wait_for {
        my ($pid) = SD::slurp("/proc/$outer/task/$outer/children") =~ /(\d+)/;
        $pid && SD::slurp("/proc/$pid/cmdline") =~ /serve/ && $pid;
    };
}


# waits for the end: the exit status

sub ended {
    my ($self) = @_;

    SD::wait_for { waitpid($self->{outer}, 1) == $self->{outer} }
        or kill 'KILL', $self->{outer};

    my $status = $? >> 8;
    waitpid $self->{log}, 0;

    return $status;
}


# the health check, as an engine runs it: its exit status

sub healthy {
    my ($self, %env) = @_;

    return system($self->exec_in(\%env, $self->command('HEALTHCHECK'))) >> 8;
}


1;
