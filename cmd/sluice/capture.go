package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/sluice-vpn/sluice/cmd/internal/capture"
	"github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
)

func captureCommand() *cli.Command {
	return &cli.Command{
		Name:  "capture",
		Usage: "write the packets of this machine's tunnel to a file for Wireshark",
		Description: "Asks the running gateway or client for the packets of the tunnel, as they are" +
			"\nbefore they are encrypted and after. Each has a comment (frame.comment): to or" +
			"\nfrom which peer it goes, and why it was dropped if it was. Large TCP and UDP" +
			"\npackets of this machine are as the kernel gives them, before they are cut." +
			"\nWith -outer the datagrams on the network are in the file as a second interface;" +
			"\ntheir IP and UDP headers are made up from the addresses. It costs nothing while" +
			"\nnobody captures; if this program is too slow packets are left out of the file," +
			"\nnot of the tunnel, and counted. The node's log says who captures.\n" +
			"\n   sluice capture -w a.pcapng -peer office -filter 'tcp port 443'" +
			"\n   sluice capture -w - | wireshark -k -i -\n" +
			"\nA filter has tcp, udp, icmp, ip, ip6, host ADDRESS, net PREFIX, port NUMBER" +
			"\n(also src host ..), and, or, not, ( ). It is about packets in the tunnel, not" +
			"\nabout datagrams. Where the disk is full or the node ends, what is in the file by" +
			"\nthen can be read.",
		Flags: append(nodeFlags(),
			&cli.StringFlag{Name: "w", Usage: "write to `FILE`; - is standard output"},
			&cli.StringFlag{Name: "peer", Usage: "only what is to or from the peer `NAME`"},
			&cli.StringFlag{Name: "filter", Usage: "only packets that `EXPRESSION` fits"},
			&cli.BoolFlag{Name: "outer", Usage: "datagrams on the network, too"},
			&cli.Uint64Flag{Name: "count", Usage: "end after `N` packets"},
			&cli.DurationFlag{Name: "duration", Usage: "end after `TIME`, such as 10s"},
			&cli.IntFlag{Name: "snaplen", Usage: "keep `BYTES` of each packet; 0: all"},
		),
		Before: noArguments,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			o := capture.Options{Peer: cmd.String("peer"), Filter: cmd.String("filter"), Outer: cmd.Bool("outer"), Count: cmd.Uint64("count"),
				SnapLength: cmd.Int("snaplen")}
			out, stdoutIsFile := cmd.Root().Writer.(*os.File)
			_, err := capture.ParseFilter(o.Filter)
			switch {
			case err != nil:
				return usageError{"-filter: " + err.Error()}
			case cmd.String("w") == "":
				return usageError{"-w FILE says where to write the packets; - is standard output"}
			case cmd.String("w") == "-" && stdoutIsFile && term.IsTerminal(int(out.Fd())):
				return usageError{"-w - writes packets, which no terminal shows: sluice capture -w - | wireshark -k -i -"}
			case o.SnapLength < 0:
				return usageError{fmt.Sprintf("-snaplen %d: want 0 or more", o.SnapLength)}
			case cmd.Duration("duration") < 0:
				return usageError{fmt.Sprintf("-duration %v: want 0 or more", cmd.Duration("duration"))}
			}
			nodes, err := chosenNodes(cmd)
			if err != nil {
				return err
			}
			if len(nodes) > 1 {
				return usageError{"several nodes run on this machine; say by -interface or -socket which one is meant"}
			}
			return capturePackets(ctx, nodes[0], o, cmd.String("w"), cmd.Duration("duration"), cmd.Root())
		},
	}
}

// capturePackets writes what a node captures, for that long or (0) until a signal.
func capturePackets(ctx context.Context, node *status.Node, o capture.Options, path string, duration time.Duration, root *cli.Command) (err error) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, duration)
		defer cancel()
	}
	stream, err := node.Stream(ctx, "/capture", o)
	if err != nil {
		return err
	}
	defer stream.Close()
	out := struct{ io.Writer }{root.Writer} // which is not to be cut
	where := "standard output"
	var n int64
	unhook := context.AfterFunc(ctx, func() { stop(); stream.Stop() }) // a second signal ends the program at once
	defer unhook()
	if path == "-" {
		n, err = capture.Copy(out, stream)
	} else {
		where = path
		n, err = copyToFile(path, stream)
	}
	if err != nil {
		return fmt.Errorf("%s: %w; what is in it can be read (%d bytes)", where, err, n)
	}
	packets, err := strconv.ParseUint(stream.Note(member.CapturedTrailer), 10, 64)
	if err != nil {
		return fmt.Errorf("the node has ended before the capture; what is in %s can be read (%d bytes)", where, n)
	}
	fmt.Fprintf(root.ErrWriter, "%d packets captured", packets)
	if dropped := stream.Note(member.DroppedTrailer); dropped != "0" {
		fmt.Fprintf(root.ErrWriter, ", %s left out since this program was too slow", dropped)
	}
	fmt.Fprintln(root.ErrWriter)
	return nil
}

// copyToFile copies a capture to a file that only its owner may read.
func copyToFile(path string, stream io.Reader) (n int64, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err == nil {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			_ = f.Chmod(0o600) // one that was there may be open to others
		}
		n, err = capture.Copy(f, stream)
		err = errors.Join(err, f.Close())
	}
	var of *os.PathError
	if errors.As(err, &of) {
		err = of.Err // the path is told by the caller
	}
	return n, err
}
