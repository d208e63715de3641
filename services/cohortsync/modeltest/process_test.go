package modeltest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/rpc"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

// process is the running engine.
type process struct {
	cohorts cohortsyncv1.CohortServiceClient
	syncs   cohortsyncv1.SyncServiceClient
	runs    cohortsyncv1.RunServiceClient

	cmd    *exec.Cmd
	conn   *grpc.ClientConn
	stdin  io.Closer
	stderr *lockedBuffer
}

// lockedBuffer is what a process says, read while it speaks.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// startProcess starts the engine and waits until it serves.
func startProcess(t *testing.T, c child) *process {
	t.Helper()
	spec, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(os.Args[0]), stderr: &lockedBuffer{}}
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(spec))
	p.cmd.Stderr = p.stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the engine did not start: %v: %s", err, p.stderr)
	}
	if p.conn, err = rpc.Dial(strings.TrimSpace(addr), nil, auth.InternalCredentials{Key: internalKey}); err != nil {
		t.Fatal(err)
	}
	p.cohorts, p.syncs, p.runs = cohortsyncv1.NewCohortServiceClient(p.conn), cohortsyncv1.NewSyncServiceClient(p.conn), cohortsyncv1.NewRunServiceClient(p.conn)
	return p
}

// end ends the process by a signal and reports what it should not have said.
func (p *process) end(t *testing.T, sig syscall.Signal) {
	t.Helper()
	_ = p.conn.Close() // the process is about to go
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	err := p.cmd.Wait()
	_ = p.stdin.Close() // likewise
	if sig == syscall.SIGTERM && err != nil {
		t.Fatalf("the engine did not end well: %v: %s", err, p.stderr)
	}
	if said := p.stderr.String(); strings.Contains(said, "DATA RACE") || strings.Contains(said, "internal error") {
		t.Fatalf("the engine says: %s", said)
	}
}

// serveWorld lets the engine's processes ask the world.
func serveWorld(t *testing.T, w *benchkit.World) (addr string) {
	t.Helper()
	srv, err := rpc.NewServer(&auth.Guard{InternalKey: internalKey})
	if err != nil {
		t.Fatal(err)
	}
	w.Register(srv)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(lis) // it ends with Stop
	}()
	t.Cleanup(func() { srv.Stop(); <-done })
	return lis.Addr().String()
}
