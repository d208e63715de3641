package roles

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/cohortbridge/cohortbridge/platform/lifecycle"
)

// Addresses are where a process serves, host:port with the port it got.
type Addresses struct {
	// HTTP is REST and Mixpanel's routes.
	HTTP string `json:"http_addr,omitempty"`
	// GRPC is gRPC.
	GRPC string `json:"grpc_addr,omitempty"`
	// Sandbox is the sandbox.
	Sandbox string `json:"sandbox_addr,omitempty"`
}

func listen(ctx context.Context, key, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return l, nil
}

// serveGRPC runs a server with health and reflection on some listeners.
func serveGRPC(g *lifecycle.Group, srv *grpc.Server, listeners ...net.Listener) {
	hs := health.NewServer()
	healthv1.RegisterHealthServer(srv, hs)
	reflection.Register(srv)
	for _, l := range listeners {
		g.Go("grpc", func() error { return srv.Serve(l) })
	}
	g.OnStop("grpc", func(ctx context.Context) error {
		ctx, cancel := half(ctx)
		defer cancel()
		hs.Shutdown()
		done := make(chan struct{})
		go func() { srv.GracefulStop(); close(done) }()
		select {
		case <-done:
		case <-ctx.Done():
			srv.Stop() // watchers may stay for ever; the data is safe
			<-done
		}
		return nil
	})
}

// half is a context that ends when half of the time that ctx has left is over: what
// stops first may be held up by others, and those behind it need time as well.
func half(ctx context.Context) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(end)/2)
}

func serveHTTP(ctx context.Context, g *lifecycle.Group, name string, l net.Listener, h http.Handler, certFile, keyFile string) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	fresh := &freshConns{}
	srv.ConnState = fresh.track
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	srv.BaseContext = func(net.Listener) context.Context { return base }
	if certFile != "" {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			cancel()
			return fmt.Errorf("tls_cert, tls_key: %w", err)
		}
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	g.Go(name, func() error {
		var err error
		if certFile != "" {
			err = srv.ServeTLS(l, "", "")
		} else {
			err = srv.Serve(l)
		}
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	})
	g.OnStop(name, func(ctx context.Context) error {
		ctx, end := half(ctx)
		defer end()
		// Streams (a watched run) and bodies that stall would hold the drain up: they end
		// after half of it.
		t := time.AfterFunc(lifecycle.DrainTimeout/4, cancel)
		defer t.Stop()
		defer cancel()
		fresh.close()
		if err := srv.Shutdown(ctx); err != nil {
			return srv.Close()
		}
		return nil
	})
	return nil
}

// freshConns are connections that have not sent a byte yet. Shutdown would wait
// five seconds for each, in case a request is on its way.
type freshConns struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func (f *freshConns) track(c net.Conn, s http.ConnState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s == http.StateNew {
		if f.conns == nil {
			f.conns = map[net.Conn]struct{}{}
		}
		f.conns[c] = struct{}{}
		return
	}
	delete(f.conns, c)
}

func (f *freshConns) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_ = c.Close() // nobody said anything on it
	}
}
