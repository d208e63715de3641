package rpc

import (
	"context"
	"sync"

	"github.com/fullstorydev/grpchan/inprocgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// InProcess carries calls inside the process: the same chain of interceptors and
// the same spans as over the network, without HTTP/2 between them. Messages are
// copied, so neither side sees the other's memory.
type InProcess struct {
	ch     *inprocgrpc.Channel
	unary  grpc.UnaryServerInterceptor // the whole chain
	stream grpc.StreamServerInterceptor

	mu      sync.RWMutex
	closed  bool
	running sync.WaitGroup // calls; Add only under mu
}

// NewInProcess makes a channel. Register services on it and Guard it before the
// first call.
func NewInProcess() *InProcess {
	p := &InProcess{ch: &inprocgrpc.Channel{}}
	p.ch.WithClientStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithFilter(notHealth)))
	p.ch.WithServerStatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithFilter(notHealth)))
	return p
}

// Guard puts the chain of interceptors in front of the services.
func (p *InProcess) Guard(g *auth.Guard) error {
	c, err := newChain(g)
	if err != nil {
		return err
	}
	p.unary, p.stream = c.unaryOne(), c.streamOne()
	p.ch.WithServerUnaryInterceptor(p.callUnary)
	p.ch.WithServerStreamInterceptor(p.callStream)
	return nil
}

func (p *InProcess) callUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	if !p.begin() {
		return nil, ToStatus(ctx, errStopping)
	}
	defer p.running.Done()
	return p.unary(ctx, req, info, h)
}

func (p *InProcess) callStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	if !p.begin() {
		return ToStatus(ss.Context(), errStopping)
	}
	defer p.running.Done()
	return p.stream(srv, ss, info, h)
}

var errStopping = fault.New(fault.Unavailable, "SHUTTING_DOWN", "the service is shutting down")

func (p *InProcess) begin() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if !p.closed {
		p.running.Add(1)
	}
	return !p.closed
}

// RegisterService implements grpc.ServiceRegistrar.
func (p *InProcess) RegisterService(d *grpc.ServiceDesc, impl any) { p.ch.RegisterService(d, impl) }

// Dial connects to the services; perRPC may be nil.
func (p *InProcess) Dial(perRPC credentials.PerRPCCredentials) grpc.ClientConnInterface {
	if perRPC == nil {
		return p.ch
	}
	return &presenting{p.ch, grpc.PerRPCCredentials(perRPC)}
}

// presenting adds credentials to each call.
type presenting struct {
	ch    grpc.ClientConnInterface
	creds grpc.CallOption
}

// Invoke implements grpc.ClientConnInterface.
func (c *presenting) Invoke(ctx context.Context, method string, req, resp any, opts ...grpc.CallOption) error {
	return c.ch.Invoke(ctx, method, req, resp, append(opts, c.creds)...)
}

// NewStream implements grpc.ClientConnInterface.
func (c *presenting) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return c.ch.NewStream(ctx, d, method, append(opts, c.creds)...)
}

// Close refuses new calls and waits for those that run, at most until ctx ends.
func (p *InProcess) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	done := make(chan struct{})
	go func() { p.running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
