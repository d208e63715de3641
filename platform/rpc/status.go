// Package rpc is how every role serves and calls gRPC: one chain of
// interceptors, one place where faults become statuses, one way to dial.
package rpc

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// Domain is the domain of our ErrorInfo reasons.
const Domain = "cohortbridge.dev"

var codeOf = map[fault.Code]codes.Code{
	fault.Internal:        codes.Internal,
	fault.Invalid:         codes.InvalidArgument,
	fault.NotFound:        codes.NotFound,
	fault.Exists:          codes.AlreadyExists,
	fault.Precondition:    codes.FailedPrecondition,
	fault.Conflict:        codes.Aborted,
	fault.Unauthenticated: codes.Unauthenticated,
	fault.Denied:          codes.PermissionDenied,
	fault.Exhausted:       codes.ResourceExhausted,
	fault.Unavailable:     codes.Unavailable,
	fault.TooLarge:        codes.InvalidArgument,
	fault.Cancelled:       codes.Canceled,
}

// ToStatus turns any error into a status error. Faults show their public half;
// anything else shows only the request id, and its text goes to the log.
func ToStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if f := fault.As(err); f != nil {
		if f.Code == fault.Internal {
			return internalStatus(ctx, err, f.Unwrap())
		}
		return fromFault(f)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return status.Error(codes.DeadlineExceeded, "the deadline passed before the answer was ready")
	}
	if errors.Is(err, context.Canceled) {
		return status.Error(codes.Canceled, "the caller went away")
	}
	// A status made by gRPC itself (a missing method, a message over the limit)
	// or passed on from another of our services is public already.
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return s.Err()
	}
	return internalStatus(ctx, err, err)
}

func fromFault(f *fault.Error) error {
	s := status.New(codeOf[f.Code], f.Public)
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: f.Reason, Domain: Domain, Metadata: f.Metadata}}
	if len(f.Violations) > 0 {
		br := &errdetails.BadRequest{}
		for _, v := range f.Violations {
			br.FieldViolations = append(br.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Description})
		}
		details = append(details, br)
	}
	if f.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryAfter)})
	}
	if d, err := s.WithDetails(details...); err == nil {
		s = d
	}
	return s.Err()
}

func internalStatus(ctx context.Context, err, cause error) error {
	id := RequestID(ctx)
	if cause == nil {
		cause = err
	}
	slog.ErrorContext(ctx, "internal error", "error", cause.Error(), "request_id", id)
	s := status.New(codes.Internal, "internal error; the log has it under request id "+id)
	if d, derr := s.WithDetails(&errdetails.ErrorInfo{Reason: "INTERNAL", Domain: Domain}, &errdetails.RequestInfo{RequestId: id}); derr == nil {
		s = d
	}
	return s.Err()
}

// RequestID names a request in answers and logs: its trace id.
func RequestID(ctx context.Context) string {
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		return sc.TraceID().String()
	}
	return "none"
}

// FromStatus turns a status received from another service back into a fault, so
// that domain code can look at its code and reason. Other errors pass unchanged.
func FromStatus(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	code := fault.Internal
	for fc, gc := range codeOf {
		if gc == s.Code() && fc != fault.TooLarge {
			code = fc
			break
		}
	}
	if s.Code() == codes.DeadlineExceeded {
		code = fault.Unavailable
	}
	f := &fault.Error{Code: code, Reason: strings.ToUpper(s.Code().String()), Public: s.Message()}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			f.Reason, f.Metadata = d.Reason, d.Metadata
		case *errdetails.BadRequest:
			for _, v := range d.FieldViolations {
				f.Violations = append(f.Violations, fault.Violation{Field: v.Field, Description: v.Description})
			}
		case *errdetails.RetryInfo:
			f.RetryAfter = max(d.RetryDelay.AsDuration(), time.Millisecond)
		}
	}
	return f.Wrap(err)
}
