package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// process is a running cohortbridge.
type process struct {
	cmd     *exec.Cmd
	done    chan error
	errOut  bytes.Buffer  // what it said; read when it has ended
	HTTP    string        `json:"http_addr"`
	GRPC    string        `json:"grpc_addr"`
	Sandbox string        `json:"sandbox_addr"`
	Event   string        `json:"event"`
	ready   time.Duration // from exec to the ready line
}

// launch starts the binary and waits for its ready line.
func (b *bench) launch(ctx context.Context, args ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, b.binary, args...), done: make(chan error, 1)}
	p.cmd.Stderr = &p.errOut
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		if json.Unmarshal(sc.Bytes(), p) == nil && p.Event == "ready" {
			p.ready = time.Since(start)
			go func() {
				_, _ = io.Copy(io.Discard, out) // until it ends
				p.done <- p.cmd.Wait()
			}()
			return p, nil
		}
	}
	return nil, errors.Join(errors.New("the process ended before it was ready"), p.cmd.Wait())
}

func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return <-p.done
}

// rss is the resident memory in megabytes.
func (p *process) rss() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	if _, err := fmt.Fscan(bytes.NewReader(b), &size, &resident); err != nil {
		return 0, err
	}
	return float64(resident*int64(os.Getpagesize())) / 1e6, nil
}

// files counts the open files.
func (p *process) files() (int, error) {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	return len(list), err
}

// dump ends the process and returns the stacks of its goroutines.
func (p *process) dump() (string, error) {
	if err := p.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return "", err
	}
	if err := <-p.done; err == nil {
		return "", errors.New("SIGQUIT did not end the process")
	}
	return p.errOut.String(), nil
}

// cpu is the processor time used so far.
func (p *process) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The fields behind the name, which may have spaces; utime and stime are the
	// 14th and 15th of the whole, in ticks of 10 ms.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 13 {
		return 0, errors.New("/proc/PID/stat is short")
	}
	user, err1 := strconv.Atoi(string(f[11]))
	sys, err2 := strconv.Atoi(string(f[12]))
	return time.Duration(user+sys) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// standalone is a process with --dev and a client for it.
type standalone struct {
	*process
	dir   string
	creds struct {
		ProjectID, ProjectToken, ServiceAccount, ServiceSecret string
	}
	conn *grpc.ClientConn
	http *http.Client
}

type basicAuth string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b basicAuth) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (basicAuth) RequireTransportSecurity() bool { return false }

func (b *bench) standalone(ctx context.Context, dir string, args ...string) (*standalone, error) {
	p, err := b.launch(ctx, append([]string{"standalone", "--dev", "--data-dir", dir, "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--log-level", "warn"}, args...)...)
	if err != nil {
		return nil, err
	}
	s := &standalone{process: p, dir: dir, http: &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	raw, err := os.ReadFile(filepath.Join(dir, "dev-credentials.json"))
	if err != nil {
		return nil, err
	}
	var c map[string]string
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	s.creds.ProjectID, s.creds.ProjectToken, s.creds.ServiceAccount, s.creds.ServiceSecret = c["project_id"], c["project_token"], c["service_account"], c["service_secret"]
	auth := "Basic " + base64.StdEncoding.EncodeToString([]byte(s.creds.ServiceAccount+":"+s.creds.ServiceSecret))
	s.conn, err = grpc.NewClient(p.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(basicAuth(auth)))
	return s, err
}

func (s *standalone) close() error {
	s.http.CloseIdleConnections()
	return errors.Join(s.conn.Close(), s.stop())
}

func (s *standalone) project() string { return "projects/" + s.creds.ProjectID }

// post sends a body and returns the answer's; anything but 200 is an error.
func (s *standalone) post(ctx context.Context, path string, body []byte, encoding string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.HTTP+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(s.creds.ServiceAccount, s.creds.ServiceSecret)
	req.Header.Set("Content-Type", "application/json")
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: HTTP %d: %.300s", path, resp.StatusCode, b)
	}
	return b, err
}

// each calls f for 0 to n-1 from workers goroutines, until one fails.
func each(n, workers int, f func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					errs <- err
					next.Store(int64(n))
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}
