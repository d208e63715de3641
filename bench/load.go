package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// load is what a load generator saw.
type load struct {
	took      time.Duration
	requests  int
	latencies []time.Duration // of each request, sorted
}

// percentile is the latency that p of 100 requests stayed under.
func (l *load) percentile(p int) time.Duration {
	if len(l.latencies) == 0 {
		return 0
	}
	return l.latencies[min(len(l.latencies)-1, len(l.latencies)*p/100)]
}

func (l *load) perSecond() float64 { return float64(l.requests) / l.took.Seconds() }

// request is everything of an HTTP request but its body.
type request struct {
	path, contentType, encoding string
}

// conn is one keep-alive connection. The client is written by hand because it
// shares two cores with what it measures: net/http's costs as much as the server.
type conn struct {
	c   net.Conn
	r   *bufio.Reader
	buf []byte
}

func (s *standalone) dial(ctx context.Context) (*conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.HTTP)
	if err != nil {
		return nil, err
	}
	return &conn{c: c, r: bufio.NewReaderSize(c, 4096)}, nil
}

// head is the request line and the headers but for Content-Length.
func (s *standalone) head(q request) []byte {
	b := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Basic %s\r\nContent-Type: %s\r\n", q.path, s.HTTP,
		base64.StdEncoding.EncodeToString([]byte(s.creds.ServiceAccount+":"+s.creds.ServiceSecret)), q.contentType)
	if q.encoding != "" {
		b = fmt.Appendf(b, "Content-Encoding: %s\r\n", q.encoding)
	}
	return append(b, "Content-Length: "...)
}

// do sends a body and reads the answer; anything but 200 is an error.
func (c *conn) do(head, body []byte) error {
	c.buf = append(strconv.AppendInt(append(c.buf[:0], head...), int64(len(body)), 10), "\r\n\r\n"...)
	if len(body) < 16<<10 {
		c.buf = append(c.buf, body...)
		body = nil
	}
	bufs := net.Buffers{c.buf}
	if body != nil {
		bufs = append(bufs, body)
	}
	if _, err := bufs.WriteTo(c.c); err != nil {
		return err
	}
	status, length := "", int64(-1)
	for first := true; ; first = false {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case first:
			status = string(line)
		case len(line) == 0:
			if length < 0 {
				return errors.New("an answer without a length")
			}
			if !bytes.HasPrefix([]byte(status), []byte("HTTP/1.1 200")) {
				text, _ := io.ReadAll(io.LimitReader(c.r, min(length, 300)))
				return fmt.Errorf("%s: %s", status, text)
			}
			_, err := c.r.Discard(int(length))
			return err
		case len(line) > 16 && bytes.EqualFold(line[:15], []byte("Content-Length:")):
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(line[15:])), 10, 64); err != nil {
				return err
			}
		}
	}
}

// run sends bodies over conns connections until next has no more.
func (s *standalone) run(ctx context.Context, q request, conns int, next func() []byte) (*load, error) {
	head := s.head(q)
	out := &load{}
	var mu sync.Mutex
	var failure error
	var wg sync.WaitGroup
	open := make([]*conn, conns)
	for i := range open {
		c, err := s.dial(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { _ = c.c.Close() }() // everything was answered
		open[i] = c
	}
	start := time.Now()
	for _, c := range open {
		wg.Go(func() {
			var mine []time.Duration
			var err error
			for body := next(); body != nil && err == nil; body = next() {
				at := time.Now()
				if err = c.do(head, body); err == nil {
					mine = append(mine, time.Since(at))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			out.latencies = append(out.latencies, mine...)
			failure = errors.Join(failure, err)
		})
	}
	wg.Wait()
	out.took, out.requests = time.Since(start), len(out.latencies)
	slices.Sort(out.latencies)
	return out, failure
}
