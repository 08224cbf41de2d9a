//! Comparing and calculating as the engine does it, for operands where that is simple. For others there is no answer
//! here: the engine has one, or an error.

use std::cmp::Ordering;

use super::plain::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Comparison {
    pub(super) fn of(operator: &str) -> Option<Self> {
        Some(match operator {
            "==" => Self::Equal,
            "!=" => Self::Unequal,
            "<" => Self::Less,
            "<=" => Self::LessOrEqual,
            ">" => Self::Greater,
            ">=" => Self::GreaterOrEqual,
            _ => return None,
        })
    }

    pub(super) fn holds(self, left: &Value<'_>, right: &Value<'_>) -> Option<bool> {
        match (left, right) {
            (Value::Int(left), Value::Int(right)) => Some(self.of_ordering(left.cmp(right))),
            (Value::Text(left), Value::Text(right)) => Some(self.of_ordering(left.cmp(right))),
            (Value::Truth(left), Value::Truth(right)) => match self {
                Self::Equal => Some(left == right),
                Self::Unequal => Some(left != right),
                _ => None,
            },
            (Value::Unknown, Value::Unknown) => Some(self == Self::Equal),
            // What a value of the engine is was not looked at.
            (Value::Unknown, Value::Held(_)) | (Value::Held(_), Value::Unknown) => None,
            // As in SQL: the unknown is never equal, less or greater.
            (Value::Unknown, _) | (_, Value::Unknown) => Some(self == Self::Unequal),
            _ => Some(self.of_floats(float(left)?, float(right)?)),
        }
    }

    fn of_ordering(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::Unequal => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }

    /// The engine takes floats for equal that differ only in their last digit.
    fn of_floats(self, left: f64, right: f64) -> bool {
        let scale = if left * right == 0.0 { 1.0 } else { left.abs().max(right.abs()) };
        let difference = (left - right) / scale;
        match self {
            Self::Equal => difference.abs() <= f64::EPSILON,
            Self::Unequal => difference.abs() > f64::EPSILON,
            Self::Less => -difference > f64::EPSILON,
            Self::LessOrEqual => -difference > -f64::EPSILON,
            Self::Greater => difference > f64::EPSILON,
            Self::GreaterOrEqual => difference > -f64::EPSILON,
        }
    }
}

impl Arithmetic {
    pub(super) fn of(operator: &str) -> Option<Self> {
        Some(match operator {
            "+" => Self::Add,
            "-" => Self::Subtract,
            "*" => Self::Multiply,
            "/" => Self::Divide,
            "%" => Self::Remainder,
            _ => return None,
        })
    }

    pub(super) fn result(self, left: &Value<'_>, right: &Value<'_>) -> Option<Value<'static>> {
        if let (Value::Int(left), Value::Int(right)) = (left, right) {
            let result = match self {
                Self::Add => left.checked_add(*right),
                Self::Subtract => left.checked_sub(*right),
                Self::Multiply => left.checked_mul(*right),
                Self::Divide => left.checked_div(*right),
                Self::Remainder => left.checked_rem(*right),
            };
            return result.map(Value::Int);
        }
        let (left, right) = (float(left)?, float(right)?);
        Some(Value::Float(match self {
            Self::Add => left + right,
            Self::Subtract => left - right,
            Self::Multiply => left * right,
            Self::Divide if right != 0.0 => left / right,
            Self::Remainder if right != 0.0 => left % right,
            Self::Divide | Self::Remainder => return None,
        }))
    }
}

#[allow(clippy::cast_precision_loss)] // as the engine does it
fn float(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    }
}
