package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// MaxMessageBytes bounds one gRPC message: a raw batch of 10 MB and a bitmap of
// tens of millions of users fit.
const MaxMessageBytes = 64 << 20

// ChainOrder names the interceptors from the outside in. Telemetry is otelgrpc's
// stats handler and the access log; errors stands outside auth and validation so
// that their faults, too, become statuses in that one place.
var ChainOrder = []string{"recovery", "telemetry", "errors", "auth", "validation"}

// chain is the interceptors, from the outside in.
type chain struct {
	unary  []grpc.UnaryServerInterceptor
	stream []grpc.StreamServerInterceptor
}

// newChain makes the chain of ChainOrder.
func newChain(guard *auth.Guard) (*chain, error) {
	v, err := protovalidate.New()
	if err != nil {
		return nil, fmt.Errorf("validator: %w", err)
	}
	val := &validation{v: v}
	unary := map[string]grpc.UnaryServerInterceptor{"recovery": recoverUnary, "telemetry": logUnary, "errors": errorsUnary, "auth": guard.Unary, "validation": val.unary}
	stream := map[string]grpc.StreamServerInterceptor{"recovery": recoverStream, "telemetry": logStream, "errors": errorsStream, "auth": guard.Stream, "validation": val.stream}
	c := &chain{}
	for _, name := range ChainOrder {
		c.unary, c.stream = append(c.unary, unary[name]), append(c.stream, stream[name])
	}
	return c, nil
}

// unaryOne is the whole chain as one interceptor.
func (c *chain) unaryOne() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		for _, i := range slices.Backward(c.unary) {
			next := h
			h = func(ctx context.Context, req any) (any, error) { return i(ctx, req, info, next) }
		}
		return h(ctx, req)
	}
}

// streamOne is the whole chain as one interceptor.
func (c *chain) streamOne() grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		for _, i := range slices.Backward(c.stream) {
			next := h
			h = func(srv any, ss grpc.ServerStream) error { return i(srv, ss, info, next) }
		}
		return h(srv, ss)
	}
}

// NewServer makes a server with the chain of ChainOrder.
func NewServer(guard *auth.Guard, opts ...grpc.ServerOption) (*grpc.Server, error) {
	c, err := newChain(guard)
	if err != nil {
		return nil, err
	}
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithFilter(notHealth))),
		grpc.ChainUnaryInterceptor(c.unary...),
		grpc.ChainStreamInterceptor(c.stream...),
		grpc.MaxRecvMsgSize(MaxMessageBytes),
		grpc.MaxSendMsgSize(MaxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}, opts...)...), nil
}

func recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = recovered(ctx, info.FullMethod, r)
		}
	}()
	return h(ctx, req)
}

func recoverStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = recovered(ss.Context(), info.FullMethod, r)
		}
	}()
	return h(srv, ss)
}

// recovered logs where a handler panicked, not with what: the value may hold people's data.
func recovered(ctx context.Context, method string, r any) error {
	slog.ErrorContext(ctx, "panic", "method", method, "type", fmt.Sprintf("%T", r), "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "internal error; the log has it under request id "+RequestID(ctx))
}

func logUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	start := time.Now()
	resp, err := h(ctx, req)
	logCall(ctx, info.FullMethod, start, err)
	return resp, err
}

func logStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	start := time.Now()
	err := h(srv, ss)
	logCall(ss.Context(), info.FullMethod, start, err)
	return err
}

// logCall logs method, code and time. Requests and answers are never logged:
// they hold people's data.
func logCall(ctx context.Context, method string, start time.Time, err error) {
	code := status.Code(err)
	level := slog.LevelDebug
	switch code {
	case codes.Internal, codes.Unknown, codes.DataLoss:
		level = slog.LevelError
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		level = slog.LevelWarn
	default: // the caller's own affair
	}
	if !slog.Default().Enabled(ctx, level) {
		return
	}
	slog.LogAttrs(ctx, level, "rpc", slog.String("method", method), slog.String("code", code.String()), slog.Duration("duration", time.Since(start)))
}

func errorsUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	resp, err := h(ctx, req)
	if err != nil {
		return nil, ToStatus(ctx, err)
	}
	return resp, nil
}

func errorsStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	return ToStatus(ss.Context(), h(srv, ss))
}

type validation struct{ v protovalidate.Validator }

func (v *validation) check(m any) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return nil
	}
	return violations(v.v.Validate(msg))
}

func (v *validation) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	if err := v.check(req); err != nil {
		return nil, err
	}
	return h(ctx, req)
}

func (v *validation) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	return h(srv, &validatedStream{ServerStream: ss, v: v})
}

type validatedStream struct {
	grpc.ServerStream
	v *validation
}

// RecvMsg receives and validates.
func (s *validatedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.v.check(m)
}

// violations turns protovalidate's error into a fault that names the fields and
// what they must be; the values themselves are not repeated.
func violations(err error) error {
	if err == nil {
		return nil
	}
	ve := new(protovalidate.ValidationError)
	if !asValidation(err, &ve) {
		return fault.New(fault.Internal, "VALIDATOR", "validation failed").Wrap(err)
	}
	f := &fault.Error{Code: fault.Invalid, Reason: "INVALID_FIELD"}
	var texts []string
	for _, x := range ve.Violations {
		field := protovalidate.FieldPathString(x.Proto.GetField())
		desc := x.Proto.GetMessage()
		if desc == "" {
			desc = "breaks the rule " + x.Proto.GetRuleId()
		}
		if f := x.FieldDescriptor; f != nil && f.Kind() == protoreflect.EnumKind && strings.HasPrefix(x.Proto.GetRuleId(), "enum.") {
			desc = EnumRule(f)
		}
		if pattern, ok := x.RuleValue.Interface().(string); ok && x.Proto.GetRuleId() == "string.pattern" {
			if words := PatternRule(pattern); words != "" {
				desc = words
			}
		}
		f.Violations = append(f.Violations, fault.Violation{Field: field, Description: desc})
		texts = append(texts, field+": "+desc)
	}
	f.Public = strings.Join(texts, "; ")
	return f
}
