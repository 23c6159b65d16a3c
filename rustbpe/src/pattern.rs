//! Which patterns are refused because matching them could take forever.
//!
//! The regex engine is linear except where a pattern looks around, refers back or is possessive;
//! there it tries again after each failure. A split pattern needs no repeat within a repeat, and no
//! two repeats of which the second is run again for each length of the first.

use crate::error::Error;
use fancy_regex::{AstNode, Expr};

/// Characters of a pattern, at most: ten times the longest published one.
const MAX_CHARACTERS: usize = 4_096;
/// Copies of an expression, at most, that repeats with an upper limit make.
const MAX_COPIES: usize = 1_000;

/// Fails unless matching the pattern takes linear time from each start.
pub fn check(pattern: &str) -> Result<(), Error> {
    let refused = |reason: &str| Err(Error::Pattern(format!("it {reason}; use a simpler one")));
    if pattern.chars().count() > MAX_CHARACTERS {
        return refused(&format!("has more than {MAX_CHARACTERS} characters"));
    }
    match Expr::parse_tree(pattern) {
        Err(error) => Err(Error::Pattern(error.to_string())),
        Ok(tree) => match cost(&tree.expr, 1) {
            Ok(_) => Ok(()),
            Err(reason) => refused(reason),
        },
    }
}

/// How an expression repeats.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// It has a repeat without an upper limit.
    repeats: bool,
    /// After a failure later on, it is tried again with another number of repetitions.
    retries: bool,
    /// The engine has to try again, instead of following all possibilities at once.
    is_hard: bool,
}

fn cost(expr: &Expr, copies: usize) -> Result<Cost, &'static str> {
    let any = |parts: &[Expr]| {
        let costs: Result<Vec<Cost>, _> = parts.iter().map(|part| cost(part, copies)).collect();
        costs.map(|costs| (costs.iter().fold(Cost::default(), either), costs))
    };
    match expr {
        Expr::Empty
        | Expr::Any { .. }
        | Expr::GeneralNewline { .. }
        | Expr::Literal { .. }
        | Expr::Delegate { .. }
        | Expr::Assertion(_) => Ok(Cost::default()),
        Expr::Alt(parts) => any(parts).map(|(all, _)| all),
        Expr::Concat(parts) => {
            let (all, costs) = any(parts)?;
            let first = costs.iter().position(|cost| cost.retries);
            let later = first.is_some_and(|at| costs[at + 1..].iter().any(|cost| cost.repeats));
            match all.is_hard && later {
                true => Err("repeats twice in an alternative that looks around"),
                false => Ok(all),
            }
        }
        Expr::Group(inner) => cost(inner, copies),
        Expr::AstNode(AstNode::AstGroup { inner, .. }, _) => cost(inner, copies),
        Expr::LookAround(inner, _) | Expr::AtomicGroup(inner) => Ok(Cost {
            retries: false,
            is_hard: true,
            ..cost(inner, copies)?
        }),
        Expr::Repeat { child, hi, .. } => {
            let copies = copies * (*hi).clamp(1, MAX_COPIES + 1);
            if *hi != usize::MAX && copies > MAX_COPIES {
                return Err("repeats an expression more than 1,000 times");
            }
            let inner = cost(child, if *hi == usize::MAX { 1 } else { copies })?;
            if inner.repeats && *hi > 1 {
                return Err("has a repeat within a repeat");
            }
            let endless = *hi == usize::MAX;
            Ok(Cost {
                repeats: endless || inner.repeats,
                retries: endless || inner.retries,
                ..inner
            })
        }
        _ => Err("refers back, calls itself or controls the search"),
    }
}

fn either(one: Cost, other: &Cost) -> Cost {
    Cost {
        repeats: one.repeats || other.repeats,
        retries: one.retries || other.retries,
        is_hard: one.is_hard || other.is_hard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_may_take_forever_are_refused() {
        for pattern in [
            r"(a+)+$",
            r"(a*)*b",
            r"(?:a|b+)*c",
            r"((a{0,100}){0,100}){0,100}",
            r"(a)\1",
            r"(?!x).*(?!x).*=",
            r"\s+(?=.*b)",
            r"(?<n>a)\g<n>",
            r"a{5000}",
            r"(?>a*)*",
        ] {
            assert!(
                matches!(check(pattern), Err(Error::Pattern(_))),
                "{pattern}"
            );
        }
        assert!(check(&"a".repeat(5000)).is_err());
    }

    #[test]
    fn published_patterns_are_allowed() {
        for pattern in [
            crate::split::DEFAULT_PATTERN,
            // o200k_base
            concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|",
                r"\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)|.",
            r"(?s:.)",
            r"\w+|\W",
            r"[a-z]+|[^a-z]",
            r"^\p{L}{2}+|[$^\]]+|\S$|\s{1,}|.",
            r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++|\s++$",
        ] {
            assert_eq!(check(pattern), Ok(()), "{pattern}");
        }
    }
}
