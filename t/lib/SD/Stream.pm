package SD::Stream;

# One HTTP/1.1 request over a socket of its own, and its response read as it
# arrives: whole, by the part of a multipart body, or by the event of an event
# stream.  Nothing is retried and nothing is hidden: complete() says whether
# the response came to its proper end.

use warnings;
use strict;

use IO::Select;
use IO::Socket::INET;
use Time::HiRes qw/ time /;

our $TIMEOUT = 120;     # seconds for any one read


# SD::Stream->new(port => 8080, method => 'POST', uri => '/generate',
#                 headers => { ... }, body => '...')

sub new {
    my ($class, %o) = @_;

    my $self = bless { start => time(), in => '', body => '' }, $class;

    $self->{sock} = IO::Socket::INET->new(
        PeerAddr => $o{host} // '127.0.0.1', PeerPort => $o{port},
        Proto => 'tcp') or die "cannot connect to port $o{port}: $!\n";

    $self->{sock}->autoflush(1);

    my %h = (Host => 'localhost', Connection => 'close', %{$o{headers} // {}});

    $h{'Content-Length'} //= length($o{body})
        if defined $o{body} && !$h{'Transfer-Encoding'};

    my $request = "$o{method} $o{uri} HTTP/1.1\r\n"
                  . join('', map { "$_: $h{$_}\r\n" } sort keys %h) . "\r\n"
                  . ($o{body} // '');

    local $SIG{PIPE} = 'IGNORE';
    print {$self->{sock}} $request;

    $self->{head} = $o{method} eq 'HEAD';

    return $self;
}


sub close {
    my ($self) = @_;

    CORE::close(delete $self->{sock}) if $self->{sock};
}


# more bytes into {in}; false at the end of the connection

sub fill {
    my ($self) = @_;

    return 0 unless $self->{sock};

    IO::Select->new($self->{sock})->can_read($TIMEOUT)
        or die "no byte within $TIMEOUT s\n";

    my $n = sysread($self->{sock}, $self->{in}, 65536, length $self->{in});

    return 1 if $n;

    $self->close();
    return 0;
}


sub read_header {
    my ($self) = @_;

    return 1 if $self->{status};

    while ($self->{in} !~ /\r\n\r\n/) {
        $self->fill() or return 0;
    }

    $self->{in} =~ s/^(.*?\r\n)\r\n//s;
    my $header = $1;

    $header =~ s{^HTTP/1\.[01] (\d+).*\r\n}{} or die "no HTTP response\n";
    $self->{status} = $1;
    $self->{header_time} = time() - $self->{start};

    for (split /\r\n/, $header) {
        /^([^:]+):\s*(.*)$/ or die "bad header line \"$_\"\n";
        my $name = lc $1;
        $self->{headers}{$name} = defined $self->{headers}{$name}
                                  ? "$self->{headers}{$name}, $2" : $2;
    }

    if ($self->{head} || $self->{status} == 204 || $self->{status} == 304) {
        $self->{left} = 0;

    } elsif (($self->{headers}{'transfer-encoding'} // '') eq 'chunked') {
        $self->{chunked} = 1;

    } else {
        $self->{left} = $self->{headers}{'content-length'};
    }

    return 1;
}


sub status {
    my ($self) = @_;

    $self->read_header();
    return $self->{status} // 0;
}


sub header {
    my ($self, $name) = @_;

    $self->read_header();
    return $self->{headers}{lc $name};
}


# more of the body into {body}; false at its end, or where it was cut

sub more {
    my ($self) = @_;

    return 0 unless $self->read_header();
    return 0 if $self->{complete};

    if ($self->{chunked}) {

        while ($self->{in} !~ /^[0-9A-Fa-f]+[^\r\n]*\r\n/) {
            $self->fill() or return 0;
        }

        $self->{in} =~ s/^([0-9A-Fa-f]+)[^\r\n]*\r\n//;
        my $n = hex $1;

        while (length $self->{in} < $n + 2) {
            if (!$self->fill()) {
                $self->{body} .= $self->{in};
                $self->{in} = '';
                return 0;
            }
        }

        $self->{body} .= substr($self->{in}, 0, $n, '');
        substr($self->{in}, 0, 2, '');

        return $self->finish() if $n == 0;

        return 1;
    }

    return $self->finish() if defined $self->{left} && $self->{left} == 0;

    if ($self->{in} eq '' && !$self->fill()) {
        $self->{complete} = 1 unless defined $self->{left};
        return 0;
    }

    $self->{left} -= length $self->{in} if defined $self->{left};
    $self->{body} .= $self->{in};
    $self->{in} = '';

    $self->finish() if defined $self->{left} && $self->{left} == 0;

    return 1;
}


# all is there; closing at once, or nginx would linger for us

sub finish {
    my ($self) = @_;

    $self->{complete} = 1;
    $self->close();

    return 0;
}


# the rest of the body

sub body {
    my ($self) = @_;

    while ($self->more()) { }

    return $self->{body};
}


sub complete {
    my ($self) = @_;

    $self->body();
    return $self->{complete} ? 1 : 0;
}


# the next part of a multipart body: { headers, body, time, event, step }, or
# nothing at the closing boundary (closed() is true then) or at a cut

sub part {
    my ($self) = @_;

    return if $self->{closed} || !$self->read_header();

    ($self->{boundary}) =
        ($self->{headers}{'content-type'} // '') =~ /boundary="?([^";]+)/
        or die "not multipart: "
               . ($self->{headers}{'content-type'} // 'no type') . "\n"
        unless defined $self->{boundary};

    my $b = $self->{boundary};

    # the first boundary; each part takes the one that follows it

    if (!$self->{opened}) {
        while ($self->{body} !~ /^(?:\r\n)?--\Q$b\E(?:--)?\r\n/) {
            $self->more() or return;
        }

        $self->{body} =~ s/^(?:\r\n)?--\Q$b\E(--)?\r\n//;
        $self->{opened} = 1;
        return if $self->{closed} = defined $1;
    }

    my ($end, %h);

    while (($end = index $self->{body}, "\r\n\r\n") == -1) {
        $self->more() or return;
    }

    $end += 4;

    for (split /\r\n/, substr($self->{body}, 0, $end)) {
        $h{lc $1} = $2 if /^([^:]+):\s*(.*)$/;
    }

    my $n = $h{'content-length'}
        // die "a part without Content-Length\n";

    # the part, a line's end, and the next boundary with its own

    my $tail = "\r\n--$b";

    while (length $self->{body} < $end + $n + length($tail) + 2
           || substr($self->{body}, $end + $n + length($tail)) =~ /^--.?\z/s)
    {
        $self->more() or return;
    }

    substr($self->{body}, $end + $n, length $tail) eq $tail
        or die "no boundary where Content-Length says\n";

    my $part = { headers => \%h, body => substr($self->{body}, $end, $n),
                 time => time() - $self->{start},
                 event => $h{'sd-event'} // '', step => $h{'sd-step'},
                 steps => $h{'sd-steps'}, image => $h{'sd-image'},
                 type => $h{'content-type'} };

    substr($self->{body}, 0, $end + $n + length $tail, '');
    $self->{body} =~ s/^(--)?\r\n// or die "no line's end after a boundary\n";
    $self->{closed} = defined $1;

    return $part;
}


sub closed {
    my ($self) = @_;

    return $self->{closed} ? 1 : 0;
}


# all parts that are still to come

sub parts {
    my ($self) = @_;
    my @parts;

    while (my $p = $self->part()) {
        push @parts, $p;
    }

    return @parts;
}


# the next event of a text/event-stream: { event, data, id, time }

sub event {
    my ($self) = @_;

    for (;;) {
        while ($self->{body} !~ /\n\n/) {
            $self->more() or return;
        }

        $self->{body} =~ s/^(.*?)\n\n//s;

        my %e = (time => time() - $self->{start});

        for (split /\n/, $1) {
            next if /^:/;
            /^(\w+): ?(.*)$/ or die "bad line of an event stream: \"$_\"\n";
            $e{$1} = defined $e{$1} ? "$e{$1}\n$2" : $2;
        }

        return \%e if defined $e{data};
    }
}


1;
