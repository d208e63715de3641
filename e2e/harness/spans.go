package harness

import (
	"context"
	"encoding/hex"
	"net"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
)

// Receiver is a real OTLP receiver that keeps all spans.
type Receiver struct {
	collector.UnimplementedTraceServiceServer
	endpoint string
	log      *captureBuffer
	mu       sync.Mutex
	spans    map[string][]*Span // by trace id
}

// Span is a received span.
type Span struct {
	Name, ID, Parent string
	Kind             tracev1.Span_SpanKind
	Attrs            map[string]string
	Links            []string // trace ids
}

var (
	receiverOnce sync.Once
	receiver     *Receiver
	errReceiver  error
)

// Spans is the receiver of this test run.
func Spans(t testing.TB) *Receiver {
	t.Helper()
	receiverOnce.Do(func() {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			errReceiver = err
			return
		}
		receiver = &Receiver{endpoint: "http://" + l.Addr().String(), log: newCapture("spans"), spans: map[string][]*Span{}}
		srv := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
		collector.RegisterTraceServiceServer(srv, receiver)
		go func() { _ = srv.Serve(l) }() // ends with the test binary
		OnExit(srv.Stop)
	})
	if errReceiver != nil {
		t.Fatal(errReceiver)
	}
	return receiver
}

// Export implements OTLP.
func (r *Receiver) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				sp := &Span{Name: s.GetName(), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()), Kind: s.GetKind(), Attrs: map[string]string{}}
				for _, a := range s.GetAttributes() {
					sp.Attrs[a.GetKey()] = prototext.MarshalOptions{}.Format(a.GetValue())
				}
				for _, l := range s.GetLinks() {
					sp.Links = append(sp.Links, hex.EncodeToString(l.GetTraceId()))
				}
				id := hex.EncodeToString(s.GetTraceId())
				r.spans[id] = append(r.spans[id], sp)
				_, _ = r.log.Write([]byte(prototext.Format(s) + "\n")) // a buffer
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// Trace returns the spans of a trace so far.
func (r *Receiver) Trace(id string) []*Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*Span(nil), r.spans[id]...)
}
