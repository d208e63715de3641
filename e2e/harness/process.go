// Package harness starts cohortbridge as real processes and talks to them from
// outside, and keeps everything they say to be searched for secrets at the end.
package harness

import (
	"bufio"
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Credentials is the file that --dev writes.
type Credentials struct {
	ProjectID      string `json:"project_id"`
	ProjectToken   string `json:"project_token"`
	ProjectSecret  string `json:"project_secret"`
	ServiceAccount string `json:"service_account"`
	ServiceSecret  string `json:"service_secret"`
	HTTPAddr       string `json:"http_addr"`
	GRPCAddr       string `json:"grpc_addr"`
	SandboxAddr    string `json:"sandbox_addr"`
}

// Ready is the line a process prints when it serves.
type Ready struct {
	Event       string `json:"event"`
	HTTPAddr    string `json:"http_addr"`
	GRPCAddr    string `json:"grpc_addr"`
	SandboxAddr string `json:"sandbox_addr"`
}

// Process is a running cohortbridge.
type Process struct {
	Ready Ready
	// Took is how long it took from its start until it served.
	Took time.Duration
	// Creds are the dev credentials, when it is a standalone with --dev.
	Creds Credentials
	cmd   *exec.Cmd
	done  chan struct{}
	err   error
	log   *captureBuffer
}

// built is a binary that is built once.
type built struct {
	flags []string
	once  sync.Once
	path  string
	err   error
}

var (
	withRace = &built{flags: []string{"-race"}}
	plain    = &built{}
)

// Binary builds cohortbridge with the race detector, once, or takes the one that
// COHORTBRIDGE_BIN names.
func Binary(t testing.TB) string { return withRace.binary(t) }

func (b *built) binary(t testing.TB) string {
	t.Helper()
	b.once.Do(func() {
		if b.path = os.Getenv("COHORTBRIDGE_BIN"); b.path != "" {
			return
		}
		dir, err := os.MkdirTemp("", "cohortbridge-e2e-")
		if err != nil {
			b.err = err
			return
		}
		OnExit(func() { _ = os.RemoveAll(dir) })
		b.path = filepath.Join(dir, "cohortbridge")
		cmd := exec.Command("go", append(append([]string{"build"}, b.flags...), "-o", b.path, ".")...)
		cmd.Dir = moduleDir()
		if out, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

// MemoryFactor is by how much the binary under test takes more memory than one
// for users: the race detector keeps a shadow of everything.
func MemoryFactor(t testing.TB) int64 {
	t.Helper()
	info, err := buildinfo.ReadFile(Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" && s.Value == "true" }) {
		return 4
	}
	return 1
}

// moduleDir is the folder of the command, seen from this file.
func moduleDir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "cmd", "cohortbridge")
}

// readyWait bounds how long a process may take to serve; a race build is slow.
const readyWait = 60 * time.Second

// Start runs cohortbridge with the arguments and waits until it serves.
func Start(t testing.TB, args ...string) *Process {
	t.Helper()
	p, err := TryStart(t, args...)
	if err != nil {
		t.Fatalf("cohortbridge %v: %v\n%s", args, err, p.log.tail())
	}
	t.Cleanup(func() { p.Stop(t) })
	return p
}

// TryStart is Start for a process that may fail.
func TryStart(t testing.TB, args ...string) (*Process, error) {
	t.Helper()
	return withRace.start(t, args...)
}

func (b *built) start(t testing.TB, args ...string) (*Process, error) {
	t.Helper()
	cmd := exec.Command(b.binary(t), args...)
	p := &Process{cmd: cmd, done: make(chan struct{}), log: newCapture(t.Name() + " log")}
	cmd.Stderr = p.log
	cmd.Env = append(os.Environ(), "OTEL_EXPORTER_OTLP_ENDPOINT="+Spans(t).endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_EXPORTER_OTLP_INSECURE=true", "OTEL_BSP_SCHEDULE_DELAY=200", "GORACE=halt_on_error=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return p, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return p, err
	}
	lines := make(chan Ready, 1)
	go func() {
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			_, _ = p.log.Write(append(sc.Bytes(), '\n')) // a buffer
			var r Ready
			if json.Unmarshal(sc.Bytes(), &r) == nil && r.Event == "ready" {
				lines <- r
			}
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	select {
	case p.Ready = <-lines:
		p.Took = time.Since(began)
		return p, nil
	case <-p.done:
		return p, fmt.Errorf("ended before it was ready: %w", p.err)
	case <-time.After(readyWait):
		p.Kill()
		return p, errors.New("not ready in time")
	}
}

// noReadLimits lets tests read back as often as they like: some do it more often
// than Mixpanel allows in an hour.
var noReadLimits = []string{"--query-per-hour", "0", "--query-concurrent", "0", "--export-per-hour", "0", "--export-per-second", "0"}

// standaloneArgs are the arguments of a standalone; further ones win over these.
func standaloneArgs(dir string, args ...string) []string {
	base := []string{"standalone", "--dev", "--data-dir", dir, "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0"}
	return slices.Concat(base, noReadLimits, args)
}

// Standalone starts everything with --dev in the folder and a sandbox elsewhere
// or inside, as the further arguments say.
func Standalone(t testing.TB, dir string, args ...string) *Process {
	t.Helper()
	p := LastingStandalone(t, dir, args...)
	t.Cleanup(func() { p.Stop(t) })
	return p
}

// LastingStandalone is Standalone that outlives the test: who asks for it ends it.
func LastingStandalone(t testing.TB, dir string, args ...string) *Process {
	t.Helper()
	args = standaloneArgs(dir, append([]string{"--log-level", "debug"}, args...)...)
	p, err := TryStart(t, args...)
	if err != nil {
		t.Fatalf("cohortbridge %v: %v\n%s", args, err, p.log.tail())
	}
	p.readCreds(t, dir)
	return p
}

// PlainStandalone is Standalone built without the race detector, for tests in which
// time matters.
func PlainStandalone(t testing.TB, dir string, args ...string) *Process {
	t.Helper()
	p, err := plain.start(t, standaloneArgs(dir, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, p.log.tail())
	}
	t.Cleanup(func() { p.Stop(t) })
	p.readCreds(t, dir)
	return p
}

func (p *Process) readCreds(t testing.TB, dir string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "dev-credentials.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &p.Creds); err != nil {
		t.Fatal(err)
	}
	Secret("project secret", p.Creds.ProjectSecret)
	Secret("service secret", p.Creds.ServiceSecret)
}

// Kill ends the process with SIGKILL, as a power cut would, and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL) // it may be gone already
	<-p.done
}

// Stop ends the process with SIGTERM; it must drain and exit with 0 within its time.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	if err := p.End(); err != nil {
		t.Error(err)
	}
}

// End is Stop outside of a test. A process that a test ended is no error.
func (p *Process) End() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("SIGTERM: %w", err)
	}
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("after SIGTERM: %w\n%s", p.err, p.log.tail())
		}
		return nil
	case <-time.After(20 * time.Second):
		tail := p.log.tail()
		p.Kill()
		return fmt.Errorf("did not drain within 20 s\n%s", tail)
	}
}

// RSS is the resident memory in bytes.
func (p *Process) RSS() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	if _, err := fmt.Fscan(bytes.NewReader(b), &size, &resident); err != nil {
		return 0, err
	}
	return resident * int64(os.Getpagesize()), nil
}

// Eventually calls f until it returns nil, or fails with its last error.
func Eventually(ctx context.Context, t testing.TB, limit time.Duration, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %s: %v", limit, err)
		case <-tick.C:
		}
	}
}
